package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/picket-ha/picket/consensus/ids"
)

// PasswordFile is one file that takes an inline password out of a cluster file.
type PasswordFile struct {
	Path string // DIR/NODE.DEVICE.bmc
	Node ids.Node
	// Device is the fence device's id.
	Device   string
	Password string
}

// String hides the password.
func (p PasswordFile) String() string { return p.Path }

// GoString hides the password.
func (p PasswordFile) GoString() string { return p.Path }

// Externalise moves every inline password of a cluster file (-P) into a file of its own below dir: it
// returns the cluster as it reads with `-f PATH` in their place, and the files that must then exist.
// It writes nothing. The result is read again and compared: it differs from c in nothing but the
// passwords' places, or an error says which line must be changed by hand. dir must be absolute.
func Externalise(name string, c Cluster, dir string) (Cluster, []PasswordFile, error) {
	if len(c.Secrets) == 0 {
		return c, nil, nil
	}
	if !filepath.IsAbs(dir) || strings.ContainsAny(dir, " \t'\"\\#") {
		return Cluster{}, nil, fmt.Errorf("the directory for password files, %q, must be an absolute path without blanks and quotes", dir)
	}
	lines := strings.Split(c.Config.Source, "\n")
	want := c.Config
	want.Nodes = nil
	for _, n := range c.Config.Nodes {
		n.Fence = append(n.Fence[:0:0], n.Fence...)
		want.Nodes = append(want.Nodes, n)
	}
	var files []PasswordFile
	for _, s := range c.Secrets {
		f := PasswordFile{Path: filepath.Join(dir, fmt.Sprintf("%s.%s.bmc", s.Node, s.Device)), Node: s.Node, Device: s.Device, Password: s.Password}
		files = append(files, f)
		if err := replaceOption(lines, c.options[secretKey{s.Node, s.Device}], f.Path); err != nil {
			return Cluster{}, nil, fmt.Errorf("%s:%d:%d: the inline password of %s cannot be moved to a file: %w; write it to %s yourself (mode 0600) and give -f %s instead of -P",
				name, s.Line, s.Column, s.Node, err, f.Path, f.Path)
		}
		dev := want.Node(s.Node).Device(s.Device)
		opts := *dev.IPMI
		opts.PasswordFile, dev.IPMI = f.Path, &opts
	}
	want.Source = strings.Join(lines, "\n")
	got, err := ParseCluster(name, []byte(want.Source))
	if err != nil || len(got.Secrets) > 0 || !reflect.DeepEqual(got.Config, want) {
		return Cluster{}, nil, fmt.Errorf("%s: the inline passwords cannot be moved to files safely; write each to a file (mode 0600) and give -f FILE instead of -P", name)
	}
	return got, files, nil
}

var (
	errShape = errors.New("its option string is quoted or folded in a way that is not understood")
	// inlinePassword matches -P and its value as ipmitool users write them: apart, attached or quoted.
	inlinePassword = regexp.MustCompile(`(^|\s)-P\s*("[^"]*"|'[^']*'|\S+)`)
)

// replaceOption exchanges -P VALUE for -f path in the option string's own line. Whether it hit the
// right thing is decided by the caller, who reads the result again.
func replaceOption(lines []string, o deviceOptions, path string) error {
	if o.text == "" || o.line < 1 || o.line > len(lines) {
		return errShape
	}
	line := lines[o.line-1]
	if strings.Count(line, o.text) != 1 {
		return errShape
	}
	hits := inlinePassword.FindAllStringSubmatchIndex(o.text, -1)
	if len(hits) != 1 {
		return errShape
	}
	h := hits[0]
	text := o.text[:h[0]] + o.text[h[2]:h[3]] + "-f " + path + o.text[h[1]:]
	lines[o.line-1] = strings.Replace(line, o.text, text, 1)
	return nil
}

// commentedPassword finds an option string with an inline password inside a comment.
var commentedPassword = regexp.MustCompile(`#.*(ipmitool|-H\s).*\s-P\s*\S`)

// comments warns of passwords in comments: the file's text is replicated and shown whole.
func (d *doc) comments() {
	for i, l := range d.lines {
		if commentedPassword.MatchString(l) && len(d.warns) < maxErrors {
			d.warns = append(d.warns, d.diag(i+1, strings.Index(l, "#")+1, "this comment seems to hold a password, and every node gets the file with its comments", "remove it"))
		}
	}
}
