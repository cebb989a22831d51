package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	tokenPrefix = "picket1"
	secretLen   = 20 // bytes; 160 random bits
	sumLen      = 3  // bytes of checksum behind the fingerprint: 35 bytes are 56 characters exactly
)

// tokenAlphabet is RFC 4648 base32 in lower case: a token survives being read aloud, upper-cased
// or split over two lines.
var tokenAlphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is a join token: a secret to show, and the fingerprint of the CA to show it to.
type Token struct {
	// Text is what the operator copies: picket1.SECRET.FINGERPRINT in base32, 97 characters.
	Text string
	// Secret is the 20-byte secret. It is never stored; Hash is.
	Secret []byte
	// Hash is the hex SHA-256 of the secret, the only form the cluster keeps.
	Hash string
	// CA is the fingerprint of the cluster's CA.
	CA Fingerprint
	// Expires is when the cluster stops accepting it. It is not part of the text: zero after ParseToken.
	Expires time.Time
}

// HashSecret returns the stored form of a token's secret: hex SHA-256.
func HashSecret(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// NewToken makes a join token for the cluster with that CA. ttl is 1 minute to 30 days; now is the
// wall clock of the cluster's side, which alone decides about expiry.
func NewToken(ca Fingerprint, ttl time.Duration, now time.Time) (Token, error) {
	if ttl < time.Minute || ttl > 30*24*time.Hour {
		return Token{}, fmt.Errorf("a join token cannot live %v: use 1m to 720h", ttl)
	}
	secret := make([]byte, secretLen)
	if _, err := rand.Read(secret); err != nil {
		return Token{}, fmt.Errorf("generate a join token: %w", err)
	}
	sum := tokenSum(secret, ca)
	text := tokenPrefix + "." + tokenAlphabet.EncodeToString(secret) + "." +
		tokenAlphabet.EncodeToString(append(append([]byte(nil), ca[:]...), sum...))
	return Token{Text: text, Secret: secret, Hash: HashSecret(secret), CA: ca, Expires: now.Add(ttl)}, nil
}

// ParseToken reads a token's text. Blanks and line ends inside, and upper case, are forgiven. Every
// single mistyped character is found by the checksum, save one in 16 million.
func ParseToken(text string) (Token, error) {
	if len(text) > 1024 {
		return Token{}, fmt.Errorf("the join token is %d characters long: it must be 97", len(text))
	}
	clean := strings.ToLower(strings.Join(strings.Fields(text), ""))
	if clean == "" {
		return Token{}, errors.New("the join token is empty: make one with picket token create")
	}
	parts := strings.Split(clean, ".")
	if parts[0] != tokenPrefix {
		return Token{}, errors.New("this is not a join token: one begins with " + tokenPrefix + ". (make one with picket token create)")
	}
	if len(parts) != 3 {
		return Token{}, fmt.Errorf("the join token has %d parts between its dots instead of 3: copy it whole", len(parts))
	}
	secret, err := tokenPart("second", parts[1], secretLen)
	if err != nil {
		return Token{}, err
	}
	tail, err := tokenPart("third", parts[2], sha256.Size+sumLen)
	if err != nil {
		return Token{}, err
	}
	t := Token{Text: clean, Secret: secret, Hash: HashSecret(secret), CA: Fingerprint(tail[:sha256.Size])}
	if string(tokenSum(secret, t.CA)) != string(tail[sha256.Size:]) {
		return Token{}, errors.New("the join token is mistyped: its checksum does not fit, copy it again")
	}
	return t, nil
}

func tokenPart(which, s string, n int) ([]byte, error) {
	want := tokenAlphabet.EncodedLen(n)
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return nil, fmt.Errorf("the join token is mistyped: its %s part holds %q, only a-z and 2-7 occur in one", which, c)
		}
	}
	if len(s) != want {
		return nil, fmt.Errorf("the join token is cut or mistyped: its %s part has %d characters instead of %d", which, len(s), want)
	}
	b, err := tokenAlphabet.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("the join token is mistyped: its %s part: %w", which, err)
	}
	return b, nil
}

func tokenSum(secret []byte, ca Fingerprint) []byte {
	h := sha256.New()
	h.Write([]byte(tokenPrefix))
	h.Write(secret)
	h.Write(ca[:])
	return h.Sum(nil)[:sumLen]
}
