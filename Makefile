# The commands of this project. `make help` lists them.
#
#   make demo [BACKEND=vxlan|host-gw|wireguard|ipip] [PROXY=auto|ipvs|nftables] [KEEP=1]   the main job on five machines
#   make cluster [KEEP=1]                        a whole Kubernetes from one file, on five machines that boot
#   make test                                    every test
#
# Both install by package name what is missing (as root, on Debian), say what they do, and leave nothing behind.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BACKEND ?= vxlan
PROXY ?= auto
KEEP ?=
MINUTES ?= 5
RELEASE ?= 12
SEED ?=
MUSL := x86_64-unknown-linux-musl
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where `make build` puts the three programs as they are released.
PROGRAMS := $(TARGET)/programs
# Where `make install` puts them; packaging/install says what each is.
PREFIX ?= /usr/local
DESTDIR ?=
CNI_BIN_DIR ?=
CNI_CONF_DIR ?=
CNI_NAMES ?=
UNIT_DIR ?=
INSTALL := PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PROGRAMS='$(PROGRAMS)' CNI_BIN_DIR='$(CNI_BIN_DIR)' CNI_CONF_DIR='$(CNI_CONF_DIR)' \
  CNI_NAMES='$(CNI_NAMES)' UNIT_DIR='$(UNIT_DIR)' packaging/install
# What is released names no folder of the machine that built it, and is the same from any of them.
CARGO_HOME ?= $(HOME)/.cargo
REMAP := --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(abspath $(TARGET))=target --remap-path-prefix=$(CARGO_HOME)=cargo
# Profile of the programs in the image, and its name.
IMAGE_PROFILE ?= daemon
IMAGE ?= localhost/netd:latest

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 28

.PHONY: setup
setup: ## Install what building and testing need, by package name
	@tests/setup build run

.PHONY: lab-kernel
lab-kernel: ## Build the user-mode kernel with IPVS, once (4 to 10 minutes, cached outside the tree)
	@tests/setup kernel

.PHONY: kubernetes
kubernetes: ## Build real Kubernetes for the tests, once (10 to 30 minutes, cached outside the tree; KUBE_BIN=folder takes programs at hand)
	@tests/setup kubernetes

# A newcomer waits for what the demo executes and for nothing else: seven packages, not the forty of the tests.
.PHONY: setup-demo
setup-demo:
	@tests/setup build demo

# A kernel with ip_vs needs no lab kernel.
.PHONY: lab-kernel-if-needed
lab-kernel-if-needed: setup-demo
	@tests/setup kernel-if-needed

.PHONY: build
build: export RUSTFLAGS := $(strip $(RUSTFLAGS) $(REMAP))
build: setup ## Build the programs for release into target/programs
	@tests/setup musl
	cargo build --profile daemon --locked -p netd -p ipvs-proxy -p netdadm
	@mkdir -p $(PROGRAMS)
	install -m 755 $(TARGET)/daemon/netd $(TARGET)/daemon/ipvs-proxy $(TARGET)/daemon/netdadm $(PROGRAMS)/
	@$(MAKE) --no-print-directory plugin

# Static, so that no dynamic linker runs for each Pod: musl where its target is installed, glibc's static start otherwise. At a fixed
# address, as Go's programs are, so that nothing is relocated at each start; and SHA-256 without asking the processor what it can
# do, which a virtual machine answers only after a detour through its host.
PLUGIN_FLAGS := -C target-feature=+crt-static -C relocation-model=static --cfg sha2_backend="soft"
.PHONY: plugin
plugin floor: export RUSTFLAGS := $(PLUGIN_FLAGS) $(REMAP)
plugin:
	@mkdir -p $(PROGRAMS)
	@if rustup target list --installed 2>/dev/null | grep -qx $(MUSL); then \
	  set -x; cargo build --profile plugin --locked --target $(MUSL) -p cni-plugin; \
	  install -m 755 $(TARGET)/$(MUSL)/plugin/netd-cni $(PROGRAMS)/; \
	else \
	  echo "make: the $(MUSL) target is not installed; linking glibc statically instead"; \
	  cargo build --profile plugin --locked --target x86_64-unknown-linux-gnu -p cni-plugin; \
	  install -m 755 $(TARGET)/x86_64-unknown-linux-gnu/plugin/netd-cni $(PROGRAMS)/; \
	fi

.PHONY: install
install: ## Install what `make build` built (PREFIX=/usr/local DESTDIR=; packaging/install lists the rest)
	@$(INSTALL)

.PHONY: uninstall
uninstall: ## Take away what the same `make install` installed; settings stay, and so does what is in the kernel
	@$(INSTALL) -u

.PHONY: deb
deb: build ## Make a Debian package of each program, in target/packages
	@PROGRAMS=$(PROGRAMS) packaging/deb $(TARGET)/packages

.PHONY: release
release: build ## Make what is published, in target/release-files: tarball, packages, list of crates, checksums (the same bytes from any folder)
	cargo build --locked -p tests --bin sbom
	@PROGRAMS=$(PROGRAMS) SBOM=$(TARGET)/debug/sbom packaging/release $(TARGET)/release-files

.PHONY: release-twice
release-twice: setup ## Build and make the release of the last commit twice, from two folders, and compare the bytes
	@packaging/twice

# Static for an image without libraries: only the last step, the linking, is another one, so what was compiled for `make build` or for the
# tests is used as it is. glibc in any case: what resolves names is part of it since 2.34.
.PHONY: static
static: setup ## Link the three programs statically, for an image, into target/image
	@mkdir -p $(TARGET)/image
	for one in netd:netd ipvs-proxy:ipvs-proxy cni-plugin:netd-cni; do \
	  cargo rustc --profile $(IMAGE_PROFILE) --locked -p $${one%:*} --bin $${one#*:} -- -C target-feature=+crt-static; \
	  install -s -m 755 $(TARGET)/$(patsubst dev,debug,$(IMAGE_PROFILE))/$${one#*:} $(TARGET)/image/; \
	done

.PHONY: image
image: static ## Build the image of the three programs and write it to target/image.tar
	podman build -t $(IMAGE) -f Containerfile $(TARGET)/image
	@rm -f $(TARGET)/image.tar
	podman save --format=docker-archive -o $(TARGET)/image.tar $(IMAGE)

# Built for development: a newcomer waits two minutes, not seven, and `make test` needs the same.
.PHONY: manual
manual: build ## Write manual pages and completions of the programs into target/manual
	@mkdir -p $(TARGET)/manual
	$(PROGRAMS)/netd man $(TARGET)/manual
	$(PROGRAMS)/ipvs-proxy man $(TARGET)/manual
	$(PROGRAMS)/netdadm man $(TARGET)/manual
	$(PROGRAMS)/netd completions bash >$(TARGET)/manual/netd.bash
	$(PROGRAMS)/netd completions zsh >$(TARGET)/manual/netd.zsh
	$(PROGRAMS)/netd completions fish >$(TARGET)/manual/netd.fish
	$(PROGRAMS)/ipvs-proxy completions bash >$(TARGET)/manual/ipvs-proxy.bash
	$(PROGRAMS)/ipvs-proxy completions zsh >$(TARGET)/manual/ipvs-proxy.zsh
	$(PROGRAMS)/ipvs-proxy completions fish >$(TARGET)/manual/ipvs-proxy.fish
	$(PROGRAMS)/netdadm completions bash >$(TARGET)/manual/netdadm.bash
	$(PROGRAMS)/netdadm completions zsh >$(TARGET)/manual/netdadm.zsh
	$(PROGRAMS)/netdadm completions fish >$(TARGET)/manual/netdadm.fish
	@cp docs/man/netd-cni.8 configs/completions/netd-cni.* $(TARGET)/manual/

.PHONY: demo
demo: setup-demo $(if $(filter ipvs,$(PROXY)),lab-kernel-if-needed) ## Show the main job: two nodes, etcd, Pods that talk, a Service that balances
	cargo build --locked -p netd -p ipvs-proxy -p cni-plugin -p tests --bins
	@$(TARGET)/debug/demo --backend $(BACKEND) --proxy $(PROXY) $(if $(KEEP),--keep)

.PHONY: cluster
cluster: setup kubernetes ## Show a whole cluster from configs/clusters/reference.yaml, with real Kubernetes on machines that boot, and each host without power (KEEP=1 leaves it up)
	cargo build --locked -p netd -p ipvs-proxy -p cni-plugin -p netdadm -p tests --bins
	@$(TARGET)/debug/cluster $(if $(KEEP),--keep)

.PHONY: soak
soak: setup $(if $(filter ipvs,$(PROXY)),lab-kernel-if-needed) ## Break a cluster of five nodes all the time and verify what must hold (MINUTES=5 SEED= BACKEND= PROXY=)
	cargo build --locked -p netd -p ipvs-proxy -p cni-plugin -p tests --bins
	@$(TARGET)/debug/soak --minutes $(MINUTES) --backend $(BACKEND) --proxy $(PROXY) $(if $(SEED),--seed $(SEED))

.PHONY: test
test: setup lab-kernel kubernetes ## Pass every test
	@$(MAKE) --no-print-directory static IMAGE_PROFILE=dev
	cargo build --locked --workspace --all-targets
	NETD_LAB=require $(TARGET)/debug/run-tests

# `make test` has a sample of operations fail; here each fails with every errno of its kind, and the program is killed at it. The time of each
# part is bounded; docs/fault-injection.md says what is walked.
.PHONY: test-faults
test-faults: export FAULTS_JOBS ?= 4
test-faults: setup lab-kernel kubernetes ## Fail every write and every kernel step of all programs with every errno (hours)
	FAULTS=all timeout 2h cargo test --locked -p cni-plugin --test verbs operation_failing -- --nocapture
	FAULTS=all timeout 1h cargo test --locked -p netdadm --test apply --test faults operation_failing -- --nocapture
	cargo build --locked -p netd -p ipvs-proxy -p netdadm -p injection -p tests --bins
	FAULTS=all NETD_LAB=require timeout 6h cargo test --locked -p tests --test injection -- --nocapture
	FAULTS=all NETD_LAB=require timeout 3h cargo test --locked -p tests --test injection_guest -- --nocapture

.PHONY: test-kubernetes
test-kubernetes: setup lab-kernel kubernetes ## Run our manifests and image on two real kubelets with API server, controllers and scheduler
	@$(MAKE) --no-print-directory static IMAGE_PROFILE=dev
	cargo build --locked -p netd -p ipvs-proxy -p cni-plugin -p tests --bins --test kubernetes_nodes --test kubernetes_services --test kubernetes_migration --test kubernetes_dual --test kubernetes_ipvs
	NETD_LAB=require cargo test --locked -p tests --test kubernetes_nodes --test kubernetes_services --test kubernetes_migration --test kubernetes_dual --test kubernetes_ipvs

# 6.1 is the lab kernel; the others are built when they are missing, each in a folder of its own outside the tree. `lean` is 6.1 without nearly
# all that the programs can make use of: there only what is said of that is tested.
KERNELS ?= 5.10 6.1 6.12 newest lean
.PHONY: test-kernels
test-kernels: setup ## Run the kernel's half of the tests and the demo in lab kernels KERNELS="5.10 6.1 6.12 newest lean", and print a table
	@tests/setup $(foreach version,$(KERNELS),kernel $(version))
	cargo build --locked -p netd -p ipvs-proxy -p cni-plugin -p netdadm -p tests --bins
	@$(TARGET)/debug/run-tests --kernels "$(KERNELS)"

.PHONY: bare
bare: ## Run the demo and pass every test on a minimal Debian that debootstrap makes in /var/tmp (as root; RELEASE=12 or 13)
	@tests/bare -r $(RELEASE) bash -c 'make demo && make test'

.PHONY: lint
lint: setup ## Format, clippy and rustdoc, with warnings as errors; and whether the static plugin compiles
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	@if rustup target list --installed 2>/dev/null | grep -qx $(MUSL); then \
	  set -x; cargo check --locked --target $(MUSL) -p cni-plugin; \
	fi
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

.PHONY: deny
deny: ## Check licences, advisories, duplicates and sources of the dependencies (installs cargo-deny)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --all-features check

.PHONY: bench
bench: build lab-kernel-if-needed ## Measure, next to the peers and the kernel's own floor (BENCH='--only cni --rounds 3')
	@tests/setup bench
	cargo build --release --locked -p tests --bin bench
	@$(MAKE) --no-print-directory floor
	@NETD_BIN_DIR=$(PROGRAMS) $(TARGET)/release/bench $(BENCH)

# As numbers that hold from run to run and on any machine: IPVS on Debian's own kernel in QEMU, whose clock counts instructions.
.PHONY: bench-instructions
bench-instructions: build ## Measure IPVS in instructions, on Debian's own kernel in QEMU (BENCH='--services 2000,10000 --endpoints 10')
	@tests/setup qemu
	cargo build --release --locked -p tests --bin bench
	@$(MAKE) --no-print-directory floor
	@NETD_BIN_DIR=$(PROGRAMS) $(TARGET)/release/bench --rounds 1 $(BENCH) --only instructions

# The floors of the benchmark, linked as the plugin is.
.PHONY: floor
floor:
	@if rustup target list --installed 2>/dev/null | grep -qx $(MUSL); then \
	  set -x; cargo build --profile plugin --locked --target $(MUSL) -p floor; \
	  install -m 755 $(TARGET)/$(MUSL)/plugin/cni-floor $(TARGET)/$(MUSL)/plugin/proxy-floor $(PROGRAMS)/; \
	else \
	  cargo build --profile plugin --locked --target x86_64-unknown-linux-gnu -p floor; \
	  install -m 755 $(TARGET)/x86_64-unknown-linux-gnu/plugin/cni-floor $(TARGET)/x86_64-unknown-linux-gnu/plugin/proxy-floor $(PROGRAMS)/; \
	fi

.PHONY: clean
clean: ## Remove what was built in the tree (the lab kernel's cache stays)
	cargo clean
