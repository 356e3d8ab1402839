# shellcheck shell=dash
# The guest chooses what completed writes are worth. Only if the server has taken the choice does the
# kernel see its own again, and where writes are stable it sends no flushes.
cache() { cat /sys/block/vda/cache_type; }
choose() {
    echo "$1" >/sys/block/vda/cache_type
    same "chosen" "$(cache)" "$1"
}
flushes() {
    # shellcheck disable=SC2046
    set -- $(cat /sys/block/vda/stat)
    echo "${16}"
}
write() { verify "$1" --size=8m --rw=randwrite --bs=4k --iodepth=8 --fdatasync=4; }

same "at first" "$(cache)" "write back"
for how in alive killed; do
    choose "write through"
    if [ $how = killed ]; then
        want grow_while_dead
        sectors=$((sectors + 32768))
    fi
    before=$(flushes)
    write "through-$how"
    same "flushes of stable writes, $how" "$(flushes)" "$before"
    choose "write back"
    write "back-$how"
    [ "$(flushes)" -gt "$before" ] || fail "no flushes, $how"
done
host_agrees 0 16
