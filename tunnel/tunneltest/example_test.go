package tunneltest_test

import (
	"context"
	"fmt"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/tunneltest"
)

// What the program sends into the device is what a worker reads from it.
func ExampleDevice() {
	d, err := tunneltest.NewDevice("memory0", 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	var _ device.Device = d
	packet := encap.IPv4{
		0x45, 0, 0, 22, 0, 0, 0, 0, 64, 253, 0, 0, // 22 bytes of an experiment's protocol
		172, 7, 21, 2, 172, 7, 22, 2, 'h', 'i',
	}
	packet.UpdateChecksum()
	fmt.Println("sent:", d.Send(packet))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = d.Receive(ctx) // nothing has come out of the overlay
	fmt.Println("received:", err)
	// Output:
	// sent: <nil>
	// received: receive from memory device: context canceled
}
