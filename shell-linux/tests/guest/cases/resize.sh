# shellcheck shell=dash
# The image's file grows: the guest has to see it, and the new end has to be there.
# is NUMBER: whether the disk has that many sectors.
is() {
    [ "$(cat /sys/block/vda/size)" = "$1" ]
}
same "size" "$(cat /sys/block/vda/size)" "$sectors"
for how in grow grow_while_dead; do
    want $how
    sectors=$((sectors + 32768))
    wait_until is $sectors
    info "$how: $sectors sectors"
    mib=$((sectors / 2048))
    random 1 /tmp/data
    put /tmp/data $((mib - 1))
    same "the last MiB" "$(sum $((mib - 1)) 1)" "$(md5sum </tmp/data | cut -d' ' -f1)"
done
host_agrees 0 $((sectors / 2048))
