package ipmi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picket-ha/picket/consensus/state"
)

// Limits and defaults of an option string.
const (
	// MaxOptions is the longest option string accepted, in bytes.
	MaxOptions = 4096
	// MaxUser and MaxPassword are the longest user name and password, in bytes (IPMI 2.0 sections
	// 22.28 and 22.30). A longer password is never cut: what is cut here is cut nowhere else.
	MaxUser     = 16
	MaxPassword = 20
	// DefaultPort is the RMCP port (IPMI 2.0 section 13.1.2).
	DefaultPort = 623
	// DefaultSuite is HMAC-SHA256 with AES-CBC-128 (IPMI 2.0 table 22-20).
	DefaultSuite = 17
	// DefaultInterval and DefaultRetries are ipmitool's for lanplus (-N and -R).
	DefaultInterval = time.Second
	DefaultRetries  = 4

	maxInterval = 30
	maxRetries  = 10
	maxHost     = 253
)

// Privilege levels (-L) that may switch power (IPMI 2.0 table G-1: Chassis Control needs Operator).
const (
	Operator      = "OPERATOR"
	Administrator = "ADMINISTRATOR"
)

// Parsed is an option string in clean form.
type Parsed struct {
	Opts state.IPMIOpts
	// Password is the value of -P, empty when it was not given. The configuration is replicated and
	// shown, so it must not stay in it: the caller writes it to a file of mode 0600, names that in
	// Opts.PasswordFile, and forgets it. Until then Opts has neither PasswordFile nor PasswordEnv.
	Password string `json:"-"`
	// Warnings are sentences for the operator; they hold no value of the option string.
	Warnings []string
}

// String shows the options without the password.
func (p Parsed) String() string {
	secret := "no password"
	switch {
	case p.Password != "":
		secret = "password given (-P)"
	case p.Opts.PasswordFile != "":
		secret = "password in " + p.Opts.PasswordFile
	case p.Opts.PasswordEnv:
		secret = "password from the environment"
	}
	return fmt.Sprintf("-I lanplus -H %s -p %d -U %s -L %s -C %d -N %d -R %d, %s", p.Opts.Host, p.Opts.Port, p.Opts.User,
		p.Opts.Privilege, p.Opts.Suite, p.Opts.Interval/time.Second, p.Opts.Retries, secret)
}

// GoString keeps the password out of %#v too.
func (p Parsed) GoString() string { return "ipmi.Parsed{" + p.String() + "}" }

// LogValue keeps the password out of structured logs.
func (p Parsed) LogValue() slog.Value { return slog.StringValue(p.String()) }

// Parse reads the options of ipmitool(1) that say how to reach a BMC:
//
//	-I lanplus -H HOST [-p PORT] -U USER (-f FILE | -E | -P PASSWORD) [-L LEVEL] [-C 3|17] [-N SECONDS] [-R COUNT]
//
// Values may be quoted as in a shell and may be attached to their letter. No error or warning holds
// a value of the string, because a misplaced quote makes a password out of any of them; they name
// the option's letter and the place of the word.
func Parse(opts string) (Parsed, error) {
	words, err := split(opts)
	if err != nil {
		return Parsed{}, err
	}
	if len(words) > 0 && (words[0] == "ipmitool" || strings.HasSuffix(words[0], "/ipmitool")) {
		words[0] = "" // pasted whole; placeholders keep word numbers right
	}
	p := Parsed{Opts: state.IPMIOpts{Port: DefaultPort, Privilege: Operator, Suite: DefaultSuite, Interval: DefaultInterval, Retries: DefaultRetries}}
	seen := map[byte]bool{}
	for i := 0; i < len(words); i++ {
		w := words[i]
		if w == "" && i == 0 {
			continue
		}
		if len(w) < 2 || w[0] != '-' {
			return Parsed{}, fmt.Errorf("ipmitool options: word %d is not an option: quote values that hold blanks, and leave out the command (picket adds \"power off\" itself)", i+1)
		}
		letter := w[1]
		takes, err := known(letter, i+1)
		if err != nil {
			return Parsed{}, err
		}
		if seen[letter] {
			return Parsed{}, fmt.Errorf("ipmitool options: -%c is given twice: keep one", letter)
		}
		seen[letter] = true
		value := w[2:]
		switch {
		case !takes && value != "":
			return Parsed{}, fmt.Errorf("ipmitool options: -%c (word %d) takes no value", letter, i+1)
		case takes && value == "":
			if i++; i >= len(words) {
				return Parsed{}, fmt.Errorf("ipmitool options: -%c (word %d) needs a value after it", letter, i)
			}
			value = words[i]
		}
		if err := p.set(letter, value); err != nil {
			return Parsed{}, fmt.Errorf("ipmitool options: %w", err)
		}
	}
	if err := p.finish(seen); err != nil {
		return Parsed{}, fmt.Errorf("ipmitool options: %w", err)
	}
	return p, nil
}

// known says whether an option takes a value, or why it is not taken.
func known(letter byte, word int) (takes bool, err error) {
	switch letter {
	case 'I', 'H', 'p', 'U', 'f', 'P', 'L', 'C', 'N', 'R':
		return true, nil
	case 'E':
		return false, nil
	case 'a':
		return false, errors.New("ipmitool options: -a asks for the password on a terminal, and a fence has none: use -f FILE")
	case 'k', 'K', 'y':
		return false, fmt.Errorf("ipmitool options: -%c gives a BMC key (Kg), which is not supported: clear the Kg in the BMC, or use another fence device", letter)
	case 'A', 'o', 'v', 'c', 'S', 'Y':
		return false, fmt.Errorf("ipmitool options: -%c (word %d) has no meaning here: leave it out", letter, word)
	case '-':
		return false, fmt.Errorf("ipmitool options: word %d is a long option, which ipmitool does not have: use -I -H -p -U -f -E -P -L -C -N -R", word)
	}
	if letter <= ' ' || letter >= 0x7f {
		return false, fmt.Errorf("ipmitool options: word %d is not an option", word)
	}
	return false, fmt.Errorf("ipmitool options: -%c (word %d) is not known: use -I -H -p -U -f -E -P -L -C -N -R, and leave the rest out", letter, word)
}

// set takes one option. Errors hold no value.
func (p *Parsed) set(letter byte, value string) (err error) {
	o := &p.Opts
	switch letter {
	case 'I':
		return checkInterface(value)
	case 'H':
		o.Host, err = cleanHost(value)
	case 'p':
		var n int
		n, err = number(letter, value, 1, 65535)
		o.Port = uint16(n)
	case 'U':
		o.User, err = value, checkUser(value)
	case 'f':
		o.PasswordFile, err = value, checkFile(value)
	case 'E':
		o.PasswordEnv = true
	case 'P':
		p.Password, err = value, checkPassword(value)
		p.Warnings = append(p.Warnings, "-P: a password on a line is read by everybody who can read the line; it was moved to a file of mode 0600 and is not shown again; use -f FILE")
	case 'L':
		o.Privilege, err = checkPrivilege(value)
	case 'C':
		switch value {
		case "3", "17":
			o.Suite, _ = strconv.Atoi(value)
		default:
			err = errors.New("-C takes 3 or 17: the other cipher suites have no authentication, no encryption or broken ones")
		}
	case 'N':
		var n int
		n, err = number(letter, value, 1, maxInterval)
		o.Interval = time.Duration(n) * time.Second
	case 'R':
		o.Retries, err = number(letter, value, 0, maxRetries)
	}
	return err
}

// finish checks what only the whole string can tell.
func (p *Parsed) finish(seen map[byte]bool) error {
	ways := 0
	for _, l := range []byte{'f', 'E', 'P'} {
		if seen[l] {
			ways++
		}
	}
	switch {
	case p.Opts.Host == "":
		return errors.New("-H HOST is missing: give the BMC's address")
	case p.Opts.User == "":
		return errors.New("-U USER is missing: an anonymous login cannot be trusted to fence")
	case ways == 0:
		return errors.New("no password: add -f FILE (a file of mode 0600 that holds it)")
	case ways > 1:
		return errors.New("more than one of -f, -E and -P is given: keep one")
	}
	if !seen['I'] {
		p.Warnings = append(p.Warnings, "-I is missing: lanplus is used (ipmitool itself would use the local interface)")
	}
	if p.Opts.PasswordEnv {
		p.Warnings = append(p.Warnings, "-E: the password is taken from IPMITOOL_PASSWORD or IPMI_PASSWORD of the daemon's environment on each node; set it there")
	}
	if p.Opts.Suite == 3 {
		p.Warnings = append(p.Warnings, "-C 3 uses SHA-1: prefer -C 17 where the BMC has it")
	}
	return nil
}

func checkInterface(v string) error {
	switch v {
	case "lanplus":
		return nil
	case "lan":
		return errors.New("-I lan is IPMI 1.5, which sends commands unencrypted and is forged easily: use -I lanplus")
	case "open", "imb", "usb":
		return errors.New("-I names a local interface, which reaches only the machine it runs on, and that one cannot fence itself: use -I lanplus -H HOST")
	}
	return errors.New("-I takes lanplus only")
}

// cleanHost takes a name or an address; an IPv6 address may be in brackets or not.
func cleanHost(v string) (string, error) {
	h := v
	if strings.HasPrefix(h, "[") && strings.HasSuffix(h, "]") {
		h = h[1 : len(h)-1]
		if !strings.Contains(h, ":") {
			return "", errors.New("-H: only an IPv6 address may stand in brackets")
		}
	}
	if h == "" || len(h) > maxHost {
		return "", fmt.Errorf("-H takes a name or an address of 1 to %d bytes", maxHost)
	}
	if strings.Contains(h, ":") {
		if _, err := netip.ParseAddr(h); err != nil {
			return "", errors.New("-H holds a colon but is no IPv6 address: give the port with -p PORT")
		}
		return h, nil
	}
	for _, c := range []byte(h) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return "", errors.New("-H takes a name or an address: letters, digits, '.', '-' and '_' only")
		}
	}
	if h[0] == '-' {
		return "", errors.New("-H has no value: the next option follows it")
	}
	return h, nil
}

func checkUser(v string) error {
	if v == "" || len(v) > MaxUser {
		return fmt.Errorf("-U takes a user name of 1 to %d bytes (IPMI 2.0)", MaxUser)
	}
	for _, c := range []byte(v) {
		if c <= ' ' || c >= 0x7f {
			return errors.New("-U takes printable ASCII without blanks")
		}
	}
	return nil
}

func checkFile(v string) error {
	switch {
	case v == "" || len(v) > 4095 || strings.ContainsRune(v, 0) || !utf8.ValidString(v):
		return errors.New("-f takes the path of the password file")
	case v[0] != '/':
		return errors.New("-f needs an absolute path: the daemon has no directory of yours")
	}
	return nil
}

// checkPrivilege takes a level in any case.
func checkPrivilege(v string) (string, error) {
	switch u := strings.ToUpper(v); u {
	case Operator, Administrator:
		return u, nil
	case "ADMIN":
		return Administrator, nil
	case "USER", "CALLBACK":
		return "", errors.New("-L names a level that may not switch power: use OPERATOR")
	}
	return "", errors.New("-L takes OPERATOR or ADMINISTRATOR")
}

func number(letter byte, v string, low, high int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("-%c takes a whole number from %d to %d", letter, low, high)
	}
	return n, nil
}

// checkPassword says what is wrong with a password, without it.
func checkPassword(v string) error {
	switch {
	case v == "":
		return errors.New("the password is empty")
	case len(v) > MaxPassword:
		return fmt.Errorf("the password is %d bytes long: IPMI 2.0 allows %d; set a shorter one in the BMC", len(v), MaxPassword)
	case strings.ContainsRune(v, 0):
		return errors.New("the password holds a zero byte: IPMI ends it there; set another one in the BMC")
	}
	return nil
}

// split cuts a string into words as a POSIX shell does (2.2 Quoting), without expansions.
func split(s string) ([]string, error) {
	if len(s) > MaxOptions {
		return nil, fmt.Errorf("ipmitool options: %d bytes long: at most %d are allowed", len(s), MaxOptions)
	}
	var words []string
	var word []byte
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c == '\'', quote == '"' && c == '"':
			quote = 0
		case quote == '\'':
			word = append(word, c)
		case c == '\\':
			if i++; i >= len(s) {
				return nil, errors.New("ipmitool options: the last character is a backslash: it needs one to protect")
			}
			if quote == '"' && !strings.ContainsRune("\"\\$`", rune(s[i])) {
				word = append(word, '\\')
			}
			word, in = append(word, s[i]), true
		case quote == '"':
			word = append(word, c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, string(word))
			}
			word, in = word[:0], false
		default:
			word, in = append(word, c), true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("ipmitool options: a quote %c is opened and not closed", quote)
	}
	if in {
		words = append(words, string(word))
	}
	return words, nil
}
