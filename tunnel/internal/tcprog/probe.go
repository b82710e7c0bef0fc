package tcprog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"uvxlan/encap"
)

// The flags of bpf_skb_adjust_room that not every kernel has (linux/bpf.h), and the
// mode.
const (
	adjustMAC         = 1
	adjustFixedGSO    = 1 << 0
	adjustDecapIPv6   = 1 << 8  // BPF_F_ADJ_ROOM_DECAP_L3_IPV6: Linux 6.3
	adjustDecapL4UDP  = 1 << 10 // BPF_F_ADJ_ROOM_DECAP_L4_UDP
	encapsulationSize = 50
)

// probe tries what the kernel can do beside what the programs can't do without.
func probe() (options uint32, err error) {
	for option, flag := range map[uint32]int64{optionDecapIPv6: adjustDecapIPv6, optionDecapL4UDP: adjustDecapL4UDP} {
		ok, err := adjusts(flag)
		if err != nil {
			return 0, fmt.Errorf("try what the kernel can do: %w", err)
		}
		if ok {
			options |= option
		}
	}
	return options, nil
}

// adjusts tells whether bpf_skb_adjust_room takes a flag, by a program that shrinks
// a packet with it.
func adjusts(flag int64) (ok bool, err error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, -encapsulationSize),
			asm.Mov.Imm(asm.R3, adjustMAC),
			asm.LoadImm(asm.R4, flag|adjustFixedGSO, asm.DWord),
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
	result, err := p.Run(&ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet))})
	return result == 0, err
}
