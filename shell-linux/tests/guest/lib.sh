# shellcheck shell=dash
# What the cases share. Every case runs with `sh -eu`: a failing command ends it.
# From the command line: $case, $queues, $cpus, $sectors.

# busybox prefers its own versions over the real programs.
for name in blkdiscard fallocate blockdev; do
    eval "$name() { $(which "$name") \"\$@\"; }"
done

# fail WORDS: ends the case.
fail() {
    echo "$*" >/tmp/reason
    exit 1
}

# must WHAT COMMAND...: ends the case with WHAT if the command fails.
must() {
    what=$1
    shift
    "$@" || fail "$what"
}

# must_fail WHAT COMMAND...: the opposite.
must_fail() {
    what=$1
    shift
    if "$@"; then fail "$what"; fi
}

# same WHAT A B: ends the case unless the words A and B are the same.
same() {
    [ "$2" = "$3" ] || fail "$1: '$2', not '$3'"
}

# info WORDS: a line for whoever reads the log.
info() {
    echo "GUEST-INFO $*"
}

# want ACTION: asks the host for something only it can do, and waits until it is done; see class
# Wishes in `run`. What it says is in $answer.
want() {
    echo "GUEST-WANT $*"
    read -r answer </dev/ttyS0
}

# wait_until COMMAND...: without a limit, the host has one.
wait_until() {
    until "$@"; do sleep 0.1; done
}

# count WORDS: how many there are.
count() {
    echo $#
}

# random MIB FILE
random() {
    dd if=/dev/urandom of="$2" bs=1M count="$1" 2>/dev/null
}

# put FILE MIB: writes the file at that place of the disk, past the page cache.
put() {
    dd if="$1" of=/dev/vda bs=1M seek="$2" oflag=direct conv=notrunc 2>/dev/null
}

# sum MIB COUNT: checksum of that part of the disk, read past the page cache.
sum() {
    dd if=/dev/vda bs=1M skip="$1" count="$2" iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1
}

# host_agrees MIB COUNT: when the guest is gone, the host compares the image with what the guest
# reads here now.
host_agrees() {
    echo "GUEST-SUM $1 $2 $(sum "$1" "$2")"
}

# verify NAME OPTIONS...: fio, writes and reads back with checksums on the whole disk or a part.
verify() {
    name=$1
    shift
    fio --name="$name" --filename=/dev/vda --direct=1 --ioengine=libaio --verify=crc32c \
        --verify_fatal=1 --minimal "$@" >/tmp/fio.log 2>&1 || { tail -n 15 /tmp/fio.log; fail "fio $name"; }
}
