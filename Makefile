# What a developer types. `make` alone lists it.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET)/release/sistemo
SOURCES := Cargo.toml Cargo.lock $(shell find crates -type f)

BINDIR := $(PREFIX)/bin
UNITDIR := $(PREFIX)/lib/systemd/system
MANDIR := $(PREFIX)/share/man/man1
BASHDIR := $(PREFIX)/share/bash-completion/completions
ZSHDIR := $(PREFIX)/share/zsh/site-functions
FISHDIR := $(PREFIX)/share/fish/vendor_completions.d

# Last, so that what the user has on PATH comes first.
export PATH := $(PATH):$(HOME)/.cargo/bin:$(CURDIR)/target/tools/bin

# With 1, a test that lacks a prerequisite fails instead of saying that it was skipped.
export SISTEMO_TEST_STRICT ?= 1

# Prerequisites are made in the order they are written, also under `make -j`: cargo runs in
# parallel by itself, and nothing may build while packages are being installed.
.NOTPARALLEL:
.PHONY: help setup packages build demo test torture check install bench clean

help: ## List what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: ## Install the Debian packages and the tool that building, running and testing need
	scripts/setup

packages:
	scripts/setup packages

build: $(BINARY) ## Build the binary

# Touched, for cargo leaves it alone where a change did not reach it, and `sudo make install`
# after `make build` must find nothing to do: root seldom has a Rust toolchain.
$(BINARY): $(SOURCES)
	$(CARGO) build --release --locked --package sistemo-cli
	@touch $@

demo: packages build ## Set everything up and run the whole workflow on a real Debian guest
	SISTEMO=$(abspath $(BINARY)) scripts/demo

test: setup check ## Set everything up and run all checks and tests
	scripts/test-assets
	$(CARGO) test --workspace --locked --no-fail-fast

torture: export SISTEMO_TORTURE_OPERATIONS ?= 20000
torture: setup ## Compare random operations on every driver with a model: 20,000 each
	$(CARGO) build --locked --package sistemo-driver-sdk --examples
	$(CARGO) test --locked --package sistemo --test torture -- --nocapture

check: ## Run what needs no guest: format, lints, docs, licences, house rules
	scripts/check-imports
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked
	$(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources

install: build ## Install below PREFIX (/usr/local): binary, man pages, completions, systemd unit
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(MANDIR)' \
		'$(DESTDIR)$(BASHDIR)' '$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(FISHDIR)'
	install -m 755 $(BINARY) '$(DESTDIR)$(BINDIR)/sistemo'
	$(BINARY) man '$(DESTDIR)$(MANDIR)'
	$(BINARY) completion bash > '$(DESTDIR)$(BASHDIR)/sistemo'
	$(BINARY) completion zsh > '$(DESTDIR)$(ZSHDIR)/_sistemo'
	$(BINARY) completion fish > '$(DESTDIR)$(FISHDIR)/sistemo.fish'
	sed 's|/usr/local/bin/|$(BINDIR)/|' 'dist/sistemo-autostart@.service' > '$(DESTDIR)$(UNITDIR)/sistemo-autostart@.service'

bench: setup ## Run the benchmarks
	$(CARGO) bench --workspace --locked

clean: ## Remove everything that was built
	$(CARGO) clean
