package device

// IntakePackets is how many packets wait for the worker.
const IntakePackets = intakePackets

// Waiting is how many packets of a wrapped device's wait for the worker.
func Waiting(d Device) int {
	in := d.(*wireguardDevice).in
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.ready)
}
