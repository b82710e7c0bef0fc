package kroute

// Protocol marks the kernel routes that this package makes, so that they
// are told from anybody else's (rtnetlink(7), rtm_protocol).
const Protocol = 89
