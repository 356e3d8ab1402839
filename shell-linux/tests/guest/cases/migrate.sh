# shellcheck shell=dash
# Moves to another QEMU in the middle of writes that are checked, and back. A page of memory that
# was written and not marked arrives old: then a checksum is wrong. A write that the old server
# makes behind the new one's is found by the last comparison.
work() {
    round=0
    until [ -e /tmp/enough ]; do
        round=$((round + 1))
        verify "round$round" --size=16m --rw=randrw --bs=4k --iodepth=16 --verify_backlog=64 \
            --randseed=$round
    done
}
# moved_on: whether the disk has done anything since `seen`.
moved_on() {
    [ "$(cat /sys/block/vda/stat)" != "$seen" ]
}
work &
job=$!
for way in there back; do
    want migrate
    info "moved $way"
    # On the new host too.
    seen=$(cat /sys/block/vda/stat)
    wait_until moved_on
done
touch /tmp/enough
if ! wait $job; then fail "$(cat /tmp/reason)"; fi
host_agrees 0 64
