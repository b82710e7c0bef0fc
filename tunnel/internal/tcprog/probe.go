package tcprog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"uvxlan/encap"
)

// The flags of bpf_skb_adjust_room that not every kernel has (linux/bpf.h), those that
// they go with, and the mode.
const (
	adjustMAC           = 1
	adjustFixedGSO      = 1 << 0
	adjustEncapIPv4     = 1 << 1
	adjustEncapUDP      = 1 << 4
	adjustEncapEthernet = 1 << 6  // BPF_F_ADJ_ROOM_ENCAP_L2_ETH: Linux 5.13
	adjustDecapIPv6     = 1 << 8  // BPF_F_ADJ_ROOM_DECAP_L3_IPV6: Linux 6.3, with that of IPv4
	adjustDecapL4UDP    = 1 << 10 // BPF_F_ADJ_ROOM_DECAP_L4_UDP
	adjustEncapL2       = encap.EthernetHeaderLen << 56
)

// adjustments are what may be tried: bytes to add, or to take away, with flags.
var adjustments = []struct {
	option uint32
	bytes  int32
	flags  int64
}{
	{optionEncapEthernet, encap.OverheadIPv4, adjustEncapIPv4 | adjustEncapUDP | adjustEncapL2 | adjustEncapEthernet},
	{optionDecapOther, -encap.OverheadIPv4, adjustDecapIPv6},
	{optionDecapL4UDP, -encap.OverheadIPv4, adjustDecapL4UDP},
}

// probe tries what the kernel can do besides what the programs can't do without.
func probe() (options uint32, err error) {
	for _, a := range adjustments {
		ok, err := adjusts(a.bytes, a.flags)
		if err != nil {
			return 0, fmt.Errorf("try what the kernel can do: %w", err)
		}
		if ok {
			options |= a.option
		}
	}
	return options, nil
}

// adjusts tells whether bpf_skb_adjust_room takes flags, by a program that calls it.
func adjusts(bytes int32, flags int64) (ok bool, err error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, bytes),
			asm.Mov.Imm(asm.R3, adjustMAC),
			asm.LoadImm(asm.R4, flags|adjustFixedGSO, asm.DWord),
			asm.FnSkbAdjustRoom.Call(),
			asm.Return(),
		},
		License: "Dual BSD/GPL",
	})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	packet := make([]byte, 256)
	binary.BigEndian.PutUint16(packet[12:], encap.EtherTypeIPv4)
	result, err := p.Run(&ebpf.RunOptions{Data: packet, DataOut: make([]byte, 2*len(packet))})
	return result == 0, err
}
