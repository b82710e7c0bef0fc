// Package handover puts the program on disk into the place of the running one.
// The process keeps its id, its descriptors and whatever state the running
// program hands over.
//
// There is no way back from an exec, so the new program first shows what it
// can. It is started as a child, the standby. The standby takes the state and
// the descriptors, and says when it is ready to do the work. A program that
// can't is refused, and the old program goes on.
//
// Then the standby works while the old program becomes the new one, the
// successor. The successor ends the standby as soon as it is ready itself. So
// the work rests twice, each time for as long as a message between processes
// takes, and not for as long as a program takes to start.
package handover
