package main_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// library is a package for other programs, with the types of what is in it.
type library struct {
	path  string
	fset  *token.FileSet
	files []*ast.File
	types *types.Package
	info  *types.Info
}

// libraries are all packages of the module that other programs may import, but
// for those that only help tests.
func libraries(t *testing.T) []*library {
	t.Helper()
	lines := goList(t, "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", "uvxlan/encap", "uvxlan/lease/...", "uvxlan/tunnel/...")
	exports := map[string]string{}
	var paths []string
	for _, line := range lines {
		path, export, _ := strings.Cut(line, " ")
		exports[path] = export
		if ours(path) && !strings.Contains(path, "/internal/") && !strings.Contains(path, "/examples/") &&
			path != "uvxlan/tunnel/netnstest" && path != "uvxlan/lease/etcd/etcdtest" && path != "uvxlan/lease/kube/kubetest" {
			paths = append(paths, path)
		}
	}
	fset := token.NewFileSet()
	from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	var all []*library
	for _, path := range paths {
		l := &library{path: path, fset: fset, info: &types.Info{Uses: map[*ast.Ident]types.Object{}}}
		for _, name := range goList(t, "-f", `{{range .GoFiles}}{{$.Dir}}/{{.}}{{"\n"}}{{end}}`, path) {
			f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			l.files = append(l.files, f)
		}
		var err error
		config := types.Config{Importer: from}
		if l.types, err = config.Check(path, fset, l.files, l.info); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	if len(all) < 7 {
		t.Fatalf("there are only %d packages", len(all))
	}
	return all
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.Bytes())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func ours(path string) bool { return strings.HasPrefix(path, "uvxlan/") }

// foreignTypes are other modules' types that a package's API has on purpose.
var foreignTypes = map[string][]string{
	"uvxlan/tunnel/device":     {"golang.zx2c4.com/wireguard/tun.Device"},
	"uvxlan/tunnel/tunnelprom": {"github.com/prometheus/client_golang/prometheus."},
}

// A program that embeds a package isn't tied to the modules that the package uses.
func TestAPIHasOwnTypesOnly(t *testing.T) {
	for _, l := range libraries(t) {
		var s surface
		for _, name := range l.types.Scope().Names() {
			if o := l.types.Scope().Lookup(name); o.Exported() {
				s.at = name
				s.object(o)
			}
		}
		for _, use := range s.uses {
			domain, _, _ := strings.Cut(use.pkg, "/") // only the standard library's have no dot
			name := use.pkg + "." + use.name
			allowed := slices.ContainsFunc(foreignTypes[l.path], func(p string) bool { return strings.HasPrefix(name, p) })
			if strings.Contains(domain, ".") && !allowed || strings.Contains(use.pkg, "/internal/") {
				t.Errorf("%s.%s has a %s", l.path, use.at, name)
			}
		}
	}
}

// surface gathers the named types that exported declarations mention.
type surface struct {
	at   string
	uses []use
}

type use struct{ at, pkg, name string }

func (s *surface) object(o types.Object) {
	s.visit(o.Type())
	named, ok := o.Type().(*types.Named)
	if _, isType := o.(*types.TypeName); !isType || !ok {
		return
	}
	s.visit(named.Underlying())
	for m := range named.Methods() {
		if m.Exported() {
			s.at = o.Name() + "." + m.Name()
			s.visit(m.Type())
		}
	}
}

func (s *surface) visit(t types.Type) {
	t = types.Unalias(t)
	switch t := t.(type) {
	case *types.Named:
		s.named(t)
	case *types.Pointer:
		s.visit(t.Elem())
	case *types.Slice:
		s.visit(t.Elem())
	case *types.Array:
		s.visit(t.Elem())
	case *types.Chan:
		s.visit(t.Elem())
	case *types.Map:
		s.visit(t.Key())
		s.visit(t.Elem())
	case *types.Signature:
		s.visit(t.Params())
		s.visit(t.Results())
	case *types.Tuple:
		for v := range t.Variables() {
			s.visit(v.Type())
		}
	case *types.Interface:
		for m := range t.Methods() {
			s.visit(m.Type())
		}
	case *types.Struct:
		for f := range t.Fields() {
			if f.Exported() {
				s.visit(f.Type())
			}
		}
	}
}

func (s *surface) named(t *types.Named) {
	for arg := range t.TypeArgs().Types() {
		s.visit(arg)
	}
	if p := t.Obj().Pkg(); p != nil {
		s.uses = append(s.uses, use{s.at, p.Path(), t.Obj().Name()})
	}
}

// processWide is what belongs to the program alone that imports a library.
var processWide = []string{
	"os.Exit", "os.Stdin", "os.Stdout", "os.Stderr", "os.Args", "os.Setenv", "os.Unsetenv", "os.Chdir", "os.Getenv", "os.LookupEnv",
	"flag.", "log.", "os/signal.", "runtime.GOMAXPROCS", "runtime/debug.", "fmt.Print", "fmt.Printf", "fmt.Println", "builtin.print", "builtin.println",
	"log/slog.Default", "log/slog.SetDefault", "log/slog.SetLogLoggerLevel", "log/slog.Debug", "log/slog.DebugContext",
	"log/slog.Info", "log/slog.InfoContext", "log/slog.Warn", "log/slog.WarnContext", "log/slog.Error", "log/slog.ErrorContext",
	"log/slog.Log", "log/slog.LogAttrs", "log/slog.With", "net/http.Handle", "net/http.HandleFunc", "net/http.DefaultServeMux",
	"github.com/prometheus/client_golang/prometheus.DefaultRegisterer", "github.com/prometheus/client_golang/prometheus.MustRegister",
	"github.com/prometheus/client_golang/prometheus.Register",
}

// A library leaves alone what its program shares with others: streams, flags,
// signals, the environment, the scheduler, the default logger. It has no state of
// its own either, so that any number of routers fit into a process.
func TestLibrariesLeaveTheProcessAlone(t *testing.T) {
	for _, l := range libraries(t) {
		for ident, o := range l.info.Uses {
			if name, ok := global(o); ok && slices.ContainsFunc(processWide, func(p string) bool {
				return name == p || strings.HasSuffix(p, ".") && strings.HasPrefix(name, p)
			}) {
				t.Errorf("%s uses %s", l.position(ident), name)
			}
		}
		for _, f := range l.files {
			ast.Inspect(f, func(n ast.Node) bool {
				for _, x := range changed(n) {
					if v, ok := l.info.Uses[root(x)].(*types.Var); ok && v.Parent() == l.types.Scope() {
						t.Errorf("%s changes the global %s", l.position(x), v.Name())
					}
				}
				if d, ok := n.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s does something when it is imported", l.position(d))
				}
				return true
			})
		}
		for _, name := range l.types.Scope().Names() {
			if v, ok := l.types.Scope().Lookup(name).(*types.Var); ok && hasState(v.Type()) {
				t.Errorf("%s.%s is global state, %s", l.path, name, v.Type())
			}
		}
	}
}

// global names a package's function or variable.
func global(o types.Object) (string, bool) {
	if _, ok := o.(*types.Builtin); ok {
		return "builtin." + o.Name(), true
	}
	if o.Pkg() == nil || o.Parent() != o.Pkg().Scope() {
		return "", false
	}
	switch o.(type) {
	case *types.Func, *types.Var:
		return o.Pkg().Path() + "." + o.Name(), true
	}
	return "", false
}

// changed lists what a statement or expression assigns to or lets others change.
func changed(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		return n.Lhs
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			return []ast.Expr{n.X}
		}
	}
	return nil
}

// root is the variable that an expression is a part of, nil if it is none's.
func root(x ast.Expr) *ast.Ident {
	for {
		switch e := x.(type) {
		case *ast.Ident:
			return e
		case *ast.IndexExpr:
			x = e.X
		case *ast.SelectorExpr:
			x = e.X
		case *ast.ParenExpr:
			x = e.X
		case *ast.StarExpr:
			x = e.X
		default:
			return nil
		}
	}
}

// hasState tells whether values of a type change by methods or by others' doing.
func hasState(t types.Type) bool {
	switch t := types.Unalias(t).(type) {
	case *types.Named:
		p := t.Obj().Pkg()
		return p != nil && (p.Path() == "sync" || p.Path() == "sync/atomic") || hasState(t.Underlying())
	case *types.Map, *types.Chan:
		return true
	case *types.Array:
		return hasState(t.Elem())
	case *types.Struct:
		for f := range t.Fields() {
			if hasState(f.Type()) {
				return true
			}
		}
	}
	return false
}

func (l *library) position(n ast.Node) string {
	p := l.fset.Position(n.Pos())
	return fmt.Sprintf("%s/%s:%d", l.path, filepath.Base(p.Filename), p.Line)
}

// dataPath is every module that a program links which embeds the data path.
var dataPath = []string{
	"github.com/gaissmai/bart", "github.com/songgao/water", "github.com/vishvananda/netlink", "github.com/vishvananda/netns",
	"golang.org/x/net", "golang.org/x/sys", "golang.zx2c4.com/wireguard", "uvxlan",
}

func TestDataPathLinksFewModules(t *testing.T) {
	for _, pkg := range []string{"uvxlan/tunnel", "uvxlan/tunnel/tunneltest"} {
		for _, module := range goList(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg) {
			if module != "" && !slices.Contains(dataPath, module) {
				t.Errorf("%s links %s", pkg, module)
			}
		}
	}
}
