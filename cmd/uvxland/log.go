package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"

	"uvxlan/cmd/internal/logqueue"
)

// openLog puts a queue before standard error, for all that writes there: a reader
// that stands still mustn't stop the daemon.
func openLog() *logqueue.Queue {
	q := logqueue.New(os.Stderr, linesLost)
	log.SetOutput(q)
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, q))
	return q
}

// linesLost stands in the log where lines are missing.
func linesLost(count uint64) []byte {
	var line bytes.Buffer
	slog.New(slog.NewTextHandler(&line, nil)).Warn("lines of the log are lost: its reader was too slow", "count", count)
	return line.Bytes()
}

// failed says an error in one line and returns the exit code. What is in front of
// it is to be read first, or there may be no room for it.
func failed(q *logqueue.Queue, code int, err error) int {
	q.Flush(logqueue.LastWords)
	fmt.Fprintln(q, "uvxland:", strings.ReplaceAll(err.Error(), "\n", "; "))
	return code
}
