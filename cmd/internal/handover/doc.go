// Package handover puts the program on disk into the place of the running one,
// which keeps its process id, its descriptors and whatever state it hands over.
//
// There is no way back from an exec, so the new program first shows what it can:
// it is started as a child, the standby, which takes the state and the descriptors
// and says when it is ready to do the work. One that can't is a refusal, and the
// old program goes on. The standby then works while the old program becomes the
// new one, the successor, which ends it as soon as it is ready itself. So the work
// rests twice for the time of a message between processes, not for that of a
// program's start.
package handover
