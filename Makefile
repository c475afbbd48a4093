# What a person runs. Every recipe says what it is doing; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Built once and kept, whichever clone asks: programs, the cluster's tools, images.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/codex-operator
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Asked for once, by the first recipe that needs it.
HOST = $(eval HOST := $$(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p'))$(HOST)
PROGRAMS = $(CARGO_TARGET_DIR)/$(HOST)/release
IMAGES = $(CACHE)/images
# Always the whole workspace: a part of it would have other features in its dependencies, and build them again.
BUILD := cargo build --release --locked --workspace --bins
# The two images and the most that each may have, in bytes, unpacked.
IMAGE_NAMES := codex codex-controller
IMAGE_LIMIT := 30000000

# The lists of packages of a bare machine are empty.
define install
root=; [ "$$(id -u)" = 0 ] || root=sudo
install="$$root apt-get install --yes --quiet --no-install-recommends $(1)"
$$install >/dev/null 2>&1 || { $$root apt-get update --quiet >/dev/null && $$install >/dev/null; }
endef

# Debian's python3 makes no virtual environments without it.
define install-venv
if ! python3 -c 'import ensurepip' 2>/dev/null; then
	echo "Installing python3-venv, in which $(1) is put."
	$(call install,python3-venv)
fi
endef

.PHONY: help root prerequisites programs image cluster cluster-down kubeconfig test demo bench bench-memory bench-train sanitize

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	echo "With CLUSTER=current REGISTRY=host:port, demo and test use the cluster of your kubeconfig context."

# Another cluster is not started here.
root:
	@case "$(CLUSTER)" in "" | local) ;; *) exit 0 ;; esac
	if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		echo "This installs packages and starts a cluster, which takes root: run it as root, or install sudo." >&2
		exit 1
	fi

# Go builds Kubernetes and kubectl; images and programs do without.
cluster demo test bench: WITH_GO := yes

prerequisites:
	@missing=()
	# rustup fetches what rust-toolchain.toml names; a cargo without it is what it is.
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
		printf 'Missing on this machine:%s; install what is missing and try again.\n' "$$(printf ' %s,' "$${missing[@]}" | sed 's/,$$//')" >&2
		exit 1
	fi
	# Cargo takes the same crate of another clone for this one's if its files are older.
	mkdir -p "$(CARGO_TARGET_DIR)"
	if [ "$$(cat "$(CARGO_TARGET_DIR)/clone" 2>/dev/null)" != "$(CURDIR)" ]; then
		cargo clean --quiet --release --workspace --target $(HOST)
		echo "$(CURDIR)" >"$(CARGO_TARGET_DIR)/clone"
	fi

image: prerequisites ## the two images from release binaries, as OCI archives; with REGISTRY=host/path also pushed there
	@if ! command -v buildah >/dev/null || ! command -v skopeo >/dev/null; then
		echo "Installing buildah and skopeo, which pack images without a container engine."
		$(call install,buildah skopeo)
	fi
	echo "Building the programs."
	$(BUILD)
	mkdir -p "$(IMAGES)"
	work=$$(mktemp -d "$(IMAGES)/work.XXXXXX")
	trap 'rm -rf "$$work"' EXIT
	mkdir "$$work/context"
	for name in $(IMAGE_NAMES); do
		strip --strip-all -o "$$work/context/$$name" "$(PROGRAMS)/$$name"
	done
	# What results say they were made by; nothing is built anew for another commit of the same programs.
	commit=$$(git rev-parse HEAD 2>/dev/null) || commit=
	[ -z "$$commit" ] || git diff --quiet HEAD 2>/dev/null || commit+=-dirty
	for name in $(IMAGE_NAMES); do
		# The tag digests what the image is made of, so another build is another tag.
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
		if ((size > $(IMAGE_LIMIT))); then
			echo "$$name:$$tag has $$size bytes; an image may have $(IMAGE_LIMIT) at most." >&2
			exit 1
		fi
		if [ -n "$(REGISTRY)" ]; then
			# A registry at a bare address has no certificate.
			secure=true
			[[ "$(REGISTRY)" =~ ^(localhost|[0-9.]+)(:|/|$$) ]] && secure=false
			skopeo --insecure-policy copy --quiet --dest-tls-verify="$$secure" "oci-archive:$$archive" "docker://$(REGISTRY)/$$name:$$tag"
			echo "pushed $(REGISTRY)/$$name:$$tag"
		fi
	done

CLUSTER_COMMAND = $(PROGRAMS)/codex-cluster

programs: prerequisites
	@$(BUILD)

cluster: root programs ## a real Kubernetes cluster on this machine, kept until cluster-down
	@$(CLUSTER_COMMAND) up

cluster-down: programs ## stops the cluster and takes away all but what was built
	@$(CLUSTER_COMMAND) down

kubeconfig: programs ## prints the path of the cluster's kubeconfig
	@$(CLUSTER_COMMAND) kubeconfig

test: root prerequisites ## every check and every test, the ones on a real cluster included; all that CI runs
	@section() {
		local begun=$$SECONDS title=$$1
		shift
		printf '\n=== %s\n' "$$title"
		"$$@"
		printf '=== %s: %d s\n' "$$title" "$$((SECONDS - begun))"
	}
	started=no
	finish() {
		local status=$$?
		if [ "$$status" != 0 ] && [ "$$started" != no ]; then
			printf '\n=== The last the controller said\n'
			kubectl=$$(ls -t "$(CACHE)"/cluster/*/bin/kubectl 2>/dev/null | head -n 1 || true)
			"$${kubectl:-kubectl}" --kubeconfig "$$($(CLUSTER_COMMAND) kubeconfig)" --namespace codex-system \
				logs deployment/codex-controller --tail=60 || true
		fi
		if [ "$$started" = here ]; then
			section "Stop the cluster" $(CLUSTER_COMMAND) down || status=1
		fi
		printf '\n=== make test %s after %d s\n' "$$([ "$$status" = 0 ] && echo passed || echo FAILED)" "$$SECONDS"
		exit "$$status"
	}
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	$(call install-venv,OpenSSF's own verifier)
	section "Format" cargo fmt --all --check
	section "Lints" cargo clippy --locked --workspace --all-targets -- --deny warnings
	section "Programs and images" $(MAKE) image REGISTRY=
	section "Tests that need no cluster" cargo test --release --locked --workspace
	case "$(CLUSTER)" in
	"" | local)
		if $(CLUSTER_COMMAND) kubeconfig >/dev/null 2>&1; then started=before; else started=here; fi
		section "Cluster" $(CLUSTER_COMMAND) up
		;;
	*)
		started=before
		section "Cluster" $(CLUSTER_COMMAND) kubeconfig
		;;
	esac
	section "Tests on the cluster" cargo test --release --locked --workspace --test e2e --test rights

demo: root prerequisites ## a small model trained, judged, signed and served on a real cluster, and another one refused
	@$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-demo

bench: prerequisites ## the figures of docs/benchmarks.md, measured on the local cluster
	@$(MAKE) image REGISTRY=
	$(PROGRAMS)/codex-bench

bench-memory: programs ## how far the trainer's estimate of memory is from its peak, on six configurations
	@benches/memory.sh $(PROGRAMS)/codex

sanitize: prerequisites ## the engine's tests under AddressSanitizer, which watches its unsafe kernels
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Z sanitizer=address" cargo test --release --locked --package codex-engine --lib \
		--target $(HOST) --target-dir "$(CACHE)/target-sanitize"

ROUNDS ?= 3
bench-train: prerequisites ## training beside PyTorch on two threads; installs PyTorch (some GB) in an environment of its own
	@$(call install-venv,PyTorch)
	python="$(CACHE)/venvs/torch/bin/python"
	if ! "$$python" -c 'import torch, numpy' >/dev/null 2>&1; then
		echo "Installing PyTorch in $(CACHE)/venvs/torch."
		python3 -m venv "$(CACHE)/venvs/torch"
		"$$python" -m pip install --quiet --no-cache-dir 'torch>=2.5' numpy
	fi
	cargo build --release --locked --workspace --example train_speed
	place=trainer-image/engine/examples
	"$$python" "$$place/train_speed.py" compare "$(PROGRAMS)/examples/train_speed" "$(ROUNDS)"
	"$$python" "$$place/train_speed.py" sizes "$(PROGRAMS)/examples/train_speed" docs/training-sizes.svg
