# make demo   the scheme on two lab nodes, from the first synchronization to a mended chain
# make test   all tests; those with real ZFS need root, and run by sudo
# make openzfs  the tests that need real ZFS with today's OpenZFS, in virtual machines; ALL=1: all
#             of them (hours), SUITE=stable: with the ZFS of Debian 12 itself
# make operators  contrib/, packages and manuals, each tried with the real program
# make kill   the tests of kills with every kill point, not a sample of them
# make soak   random faults on four lab nodes; MINUTES=10, and SEED=n to repeat one
# make deb    Debian packages of both programs, in build/deb
# make bench  compares the agent with the bare commands and with other programs, by default in
#             virtual machines, for half an hour or more; WORK=one/20,idle/20, WHO=ours,sequence,
#             ROUNDS=5, BUDGET=30: seconds for one program and work, after which it gets no more
#             rounds, SMOKE=1: each work once, ZFS_LAB=fuse, OUT=folder, NAME=file; see
#             tests/bench/__main__.py
# make lint   ruff, mypy and mandoc
# make clean  remove what the others made
# Each sets up what it needs: Debian packages and .venv, see tests/setup.sh.

.PHONY: help demo test openzfs operators kill soak bench deb deb-tools lint clean

# Each worker has labs of its own; the killing tests of one file are spread over the workers.
JOBS ?= 2
ARGS ?=
SUITE ?= backports
MINUTES ?= 10
DEB := build/deb
ROUNDS ?= 5
ZFS_LAB ?= openzfs

PY := .venv/bin/python
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# program:package
LAB := zfs-fuse:zfs-fuse zdb:zfs-fuse sshd:openssh-server ssh:openssh-client \
	ssh-keygen:openssh-client ip:iproute2 unshare:util-linux nsenter:util-linux mount:mount
# What a stream may go through on its way.
STREAM := zstd:zstd lz4:lz4 gzip:gzip mbuffer:mbuffer
MANUALS := mandoc:mandoc groff:groff-base
# What is tried with OpenZFS in half an hour: emulation makes every command slow.
WITH_OPENZFS := $(addprefix tests/e2e/test_,inside.py resume.py formats.py kinds.py discards.py \
	unchanged.py changed.py full.py \
	failover.py repair.py field_cut.py) tests/zfs_sync_agent/test_contract.py

GUESTS := qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils debootstrap:debootstrap mke2fs:e2fsprogs
# What contrib/ and the packages are tried with.
OPERATORS := nagios4:nagios4-core icinga2:icinga2-bin nrpe:nagios-nrpe-server \
	prometheus:prometheus prometheus-node-exporter:prometheus-node-exporter \
	sudo:sudo curl:curl jq:jq zsh:zsh fish:fish \
	/usr/lib/nagios/plugins/check_by_ssh:monitoring-plugins-basic \
	/usr/lib/nagios/plugins/check_nrpe:nagios-nrpe-plugin \
	cron:cron systemctl:systemd faketime:faketime lintian:lintian pipx:pipx \
	debootstrap:debootstrap

# What a source package of Debian is made of.
SOURCES := CHANGELOG.md LICENSE MANIFEST.in README.md contrib debian man pyproject.toml setup.cfg \
	check_zfs_sync zfs_sync_agent

FAULTS := strace:strace faketime:faketime

help:
	@sed -n 's/^# //; /^make\|^Each/p' Makefile

demo:
	@tests/setup.sh $(LAB)
	@$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PY) -m tests.demo.demo

test:
	@tests/setup.sh $(LAB) $(STREAM) $(MANUALS) $(FAULTS)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 KEEP_OUTCOMES=1 \
		$(PY) -m pytest -n $(JOBS) --dist worksteal --ignore tests/operators $(ARGS)

openzfs:
	@tests/setup.sh $(LAB) $(STREAM) $(GUESTS)
	@$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 OPENZFS_SUITE=$(SUITE) $(PY) -m tests.openzfs.guest
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 KEEP_OUTCOMES=1 ZFS_LAB=openzfs OPENZFS_SUITE=$(SUITE) \
		$(PY) -m pytest -n $(JOBS) --dist worksteal $(if $(ALL),tests/e2e,$(WITH_OPENZFS)) $(ARGS)

operators: deb-tools
	@tests/setup.sh $(LAB) $(MANUALS) $(OPERATORS)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 \
		$(PY) -m pytest -n $(JOBS) --dist worksteal tests/operators $(ARGS)

kill:
	@tests/setup.sh $(LAB)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 KILL_ALL=1 $(PY) -m pytest -n $(JOBS) --dist worksteal \
		tests/e2e/test_kill.py tests/e2e/test_repair_kill.py

soak:
	@tests/setup.sh $(LAB)
	@$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PY) -m tests.soak --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(DEFECT),--defect $(DEFECT))

deb-tools:
	@dpkg-checkbuilddeps 2>/dev/null || $(AS_ROOT) sh -c 'apt-get -q update; \
		apt-get -q -y --no-install-recommends --no-remove build-dep ./ </dev/null'

# With Debian's own python3, whatever the PATH finds before it.
deb: deb-tools
	rm -rf $(DEB)
	mkdir -p $(DEB)/source
	cp -r $(SOURCES) $(DEB)/source
	cd $(DEB)/source && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -us -uc
	rm -r $(DEB)/source

bench:
	@tests/setup.sh $(LAB) $(if $(filter openzfs,$(ZFS_LAB)),$(GUESTS))
	@$(AS_ROOT) env ZFS_LAB=$(ZFS_LAB) OPENZFS_SUITE=$(SUITE) $(PY) -m tests.bench --rounds $(ROUNDS) \
		$(if $(WORK),--work $(WORK)) $(if $(WHO),--who $(WHO)) $(if $(SMOKE),--smoke) \
		$(if $(BUDGET),--budget $(BUDGET)) $(if $(OUT),--out $(OUT)) $(if $(NAME),--name $(NAME))

lint:
	@tests/setup.sh $(MANUALS)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --strict
	mandoc -T lint -W warning man/*

clean:
	$(AS_ROOT) rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	$(AS_ROOT) find . -name __pycache__ -prune -exec rm -rf {} +
