#!/bin/bash
# Builds Traefik VERSION at PROGRAM from its Go module: traefik.sh VERSION PROGRAM.
# Three modules that it names are not in the Go registry, or not in a module's zip: its package for extensions, which is empty; a fork of
# go-http-auth, whose upstream lacks one function, which digest authentication alone uses; and the clients of some DNS providers, which only
# certificates need.
set -euo pipefail
version=$1 program=$2
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
# Copies the sources of module $1 in version $2 to $3.
module() {
	(cd "$folder" && go mod download "$1@$2")
	cp -r "$(cd "$folder" && go list -m -f '{{.Dir}}' "$1@$2")" "$3"
	chmod -R u+w "$3"
}
module github.com/traefik/traefik/v3 "$version" "$folder/traefik"
cd "$folder/traefik"
lego=$(go mod edit -json | sed -n '/go-acme\/lego\/v5"/{n;s/.*"Version": "\(.*\)".*/\1/p}')
module github.com/go-acme/lego/v5 "$lego" "$folder/lego"
cat >"$folder/lego/providers/dns/zz_gen_dns_providers.go" <<'GO'
package dns

import (
	"fmt"

	"github.com/go-acme/lego/v5/challenge"
)

func NewDNSChallengeProviderByName(name string) (challenge.Provider, error) {
	return nil, fmt.Errorf("DNS provider %q is not part of this build", name)
}
GO
mkdir -p pkg/config/dynamic/ext
printf 'module github.com/traefik/traefik/dynamic/ext\n' >pkg/config/dynamic/ext/go.mod
printf 'package ext\n\ntype HTTP struct{}\n\ntype Router struct{}\n' >pkg/config/dynamic/ext/ext.go
sed -i 's/RequireAuthStale/RequireAuth/' pkg/middlewares/auth/digest_auth.go
go mod edit -replace "github.com/go-acme/lego/v5=$folder/lego" \
	-dropreplace github.com/abbot/go-http-auth -require github.com/abbot/go-http-auth@v0.4.1-0.20220112235402-e1cee1c72f2f
mkdir -p "$(dirname "$program")"
CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags "-s -w" -o "$program" ./cmd/traefik
