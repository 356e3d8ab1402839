# shellcheck shell=dash
# Moves to another QEMU in the middle of checked reads and writes, and back. Reads into buffers that
# nobody else writes to tell whether the server marks what it writes to memory: a page that is not
# marked arrives as it was before, and its checksum is that of another block. A write that the old
# server makes behind the new one's is found by the last comparison.
reads() {
    until [ -e /tmp/enough ]; do
        verify reads --size=32m --rw=randread --bs=16k --iodepth=32
    done
}
writes() {
    round=0
    until [ -e /tmp/enough ]; do
        round=$((round + 1))
        verify "round$round" --offset=32m --size=16m --rw=randwrite --bs=4k --iodepth=16 \
            --randseed=$round
    done
}
# moved_on: whether the disk has done anything since `seen`.
moved_on() {
    [ "$(cat /sys/block/vda/stat)" != "$seen" ]
}
verify reads --size=32m --rw=write --bs=16k --iodepth=32
reads &
reader=$!
writes &
writer=$!
for way in there back; do
    want migrate
    info "moved $way"
    seen=$(cat /sys/block/vda/stat)
    wait_until moved_on
done
touch /tmp/enough
for job in $reader $writer; do
    if ! wait "$job"; then fail "$(cat /tmp/reason)"; fi
done
host_agrees 0 64
