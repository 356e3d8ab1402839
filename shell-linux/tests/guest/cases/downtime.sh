# shellcheck shell=dash
# The host kills the server in the middle of writes and resets the machine before the server is
# back. Nothing that was in flight then may come after the reset.
# The disk remembers the boot: its first sector.
kept=$(dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\0')
if [ -z "$kept" ]; then
    echo again >/tmp/note
    must "note" dd if=/tmp/note of=/dev/vda bs=512 conv=sync,notrunc oflag=direct 2>/dev/null
    fio --name=load --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randwrite --bs=4k \
        --offset=32m --size=32m --iodepth=64 --time_based --runtime=600 >/dev/null &
    written() { [ "$(awk '{ print $7 }' /sys/block/vda/stat)" -gt 8192 ]; }
    wait_until written
    want reset_while_dead
    fail "no reset"
fi
want nothing_replayed
verify after --offset=32m --size=8m --rw=randwrite --bs=4k --iodepth=32
host_agrees 0 64
