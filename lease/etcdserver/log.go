package etcdserver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo returns a zap logger that passes warnings and errors on until mute is
// set: when it stops, etcd reports each closed listener as an error.
func zapTo(log *slog.Logger, mute *atomic.Bool) *zap.Logger {
	return zap.New(core{log: log.With("component", "etcd"), mute: mute})
}

// core implements zapcore.Core over slog.
type core struct {
	log    *slog.Logger
	mute   *atomic.Bool
	fields []zapcore.Field
}

// routine tells the warnings that a single embedded member gives in good
// health.
func routine(message string) bool {
	return strings.HasPrefix(message, "Running http and grpc server on single port") ||
		message == "simple token is not cryptographically signed" ||
		message == "failed to receive watch request from gRPC stream"
}

func (c core) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !c.mute.Load() && c.log.Enabled(context.Background(), level(l))
}

func (c core) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(slices.Clip(c.fields), fields...)
	return c
}

func (c core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !routine(e.Message) {
		return to.AddCore(e, c)
	}
	return to
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(c.fields), fields...) {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), level(e.Level), e.Message, attrs...) //nolint:sloglint // the message is etcd's
	return nil
}

func (c core) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelError
	}
	return slog.LevelWarn
}
