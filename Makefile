# Every job sets up what it needs (apt, cargo) on a fresh Debian 12 machine, as root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SAMPLES := target/samples
BERTH := target/release/berth
ARM64 := aarch64-unknown-linux-gnu
# Debian's own compiler has a library for arm64; a compiler in PATH before it has none.
CROSS := RUSTC=/usr/bin/rustc PKG_CONFIG_ALLOW_CROSS=1 \
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
  PKG_CONFIG_LIBDIR_aarch64_unknown_linux_gnu=/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig /usr/bin/cargo

# Property tests draw the same cases each time: what they find must not fail somebody else's change. `make test-long`
# draws new ones.
export PROPTEST_RNG_SEED ?= 20261121

.PHONY: help setup build samples samples-arm64 run test test-unit test-native test-escape test-density vm test-long check bench cross cross-arm64 deb yocto-crates clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# One static file: it starts in less time, and nothing on the node but its kernel can break it. Not for arm64: there the compiler
# makes static programs with fixed addresses.
STATIC := -- -C target-feature=+crt-static

build: ## the release binary, target/release/berth
	@.ci/setup build
	cargo rustc --release --locked -p berth --bin berth $(STATIC)

samples: build ## the two sample images as OCI archives, target/samples
	cargo rustc --release --locked -p device-worker $(STATIC)
	cargo run --release --locked -q -p berth-images --bin berth-sample-images -- $(SAMPLES) \
	  --busybox /bin/busybox --worker target/release/device-worker

run: samples ## the main job: plug a device, see its container proven, unplug it (KEEP=1 stays up)
	@.ci/setup test
	KEEP=$(KEEP) tests/run/journey.sh

# The last step of a release build is one thread: the two go side by side.
test: ## all tests that one CI run can hold
	@.ci/setup build test vm cross
	$(MAKE) -j2 build cross-arm64
	$(MAKE) test-unit
	$(MAKE) test-native
	$(MAKE) vm

test-unit: ## unit, table and property tests of every crate, and those on this machine's kernel
	@.ci/setup build test
	cargo test --locked --workspace --exclude berth-tests
	cargo test --locked -p berth-tests --test yocto

test-native: samples ## the journeys on this machine's kernel
	@.ci/setup test
	cargo test --locked -p berth-tests --lib --test native --test fuzz

test-escape: build ## published escapes against berth, crun and runc: the table of docs/escape.md
	@.ci/setup bench
	BERTH_ESCAPE_SECONDS=10 cargo run --locked -q -p berth-tests --bin berth-escape -- all berth crun runc

test-density: samples ## 1,000 containers at once, and what each costs
	@.ci/setup test
	BERTH_DENSITY=1000 cargo test --locked -p berth-tests --test native density -- --nocapture

vm: samples samples-arm64 ## the guests: PREEMPT_RT, cgroup v2, real hotplug, systemd, arm64, power cuts
	@.ci/setup vm
	cargo test --locked -p berth-tests --test vm

test-long: ## the same tests with more rounds
	PROPTEST_RNG_SEED=$$RANDOM PROPTEST_CASES=2000 BERTH_ROUNDS=10 $(MAKE) test

bench: samples ## every figure of docs/SPECIFICATION.md, beside its peer, in one run
	@.ci/setup bench
	cargo run --release --locked -q -p berth-tests --bin berth-bench

check: ## formatting, lints, licences, documentation
	@.ci/setup build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps -q
	command -v cargo-deny >/dev/null || cargo install --locked -q cargo-deny
	cargo deny --offline check bans licenses sources

cross: build cross-arm64 ## stripped release binaries for x86_64 and arm64, target/dist
	install -D $(BERTH) target/dist/berth-x86_64
	@ls -l target/dist/berth-*

cross-arm64:
	@.ci/setup cross
	$(CROSS) build --release --locked -p berth --target $(ARM64) --target-dir target/cross
	$(CROSS) rustc --release --locked -p device-worker --target $(ARM64) --target-dir target/cross $(STATIC)
	install -D target/cross/$(ARM64)/release/berth target/dist/berth-aarch64

samples-arm64: samples cross-arm64
	rm -rf target/cross/busybox && mkdir -p target/cross/busybox
	cd target/cross/busybox && apt-get download -q -o APT::Sandbox::User=root busybox-static:arm64 >/dev/null && dpkg-deb -x *.deb .
	cargo run --release --locked -q -p berth-images --bin berth-sample-images -- target/samples-arm64 \
	  --busybox target/cross/busybox/bin/busybox --worker target/cross/$(ARM64)/release/device-worker --arch arm64

deb: cross ## Debian packages for amd64 and arm64, target/dist
	@.ci/setup deb
	agent/dist/deb.sh amd64 target/dist/berth-x86_64 target/dist
	HOST_BERTH=target/dist/berth-x86_64 agent/dist/deb.sh arm64 target/dist/berth-aarch64 target/dist

yocto-crates: ## the recipe's list of crates, from Cargo.lock
	yocto/crates.sh

clean: ## what builds and the rig have made
	rm -rf target .rig
