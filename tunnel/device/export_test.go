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

// DescriptionOnly says that the calls of a queue of DriverNative go without
// RWF_NOWAIT.
func DescriptionOnly(q Queue) *bool { return &q.(*nativeQueue).vec.descriptionOnly }

// ReadFile reads from any file as a queue does, and tells whether that was without
// RWF_NOWAIT.
func ReadFile(fd int, buf []byte) (n int, without bool, err error) {
	var v vector
	v.set(0, buf)
	for range 2 {
		if n, err = v.read(fd, 1); err != nil {
			break
		}
	}
	return n, v.descriptionOnly, err
}
