# shellcheck shell=dash
# The driver lets go of the disk and takes it again, on both levels: the block driver resets the
# device, the PCI driver sets it up from nothing. The data stays.
random 8 /tmp/data
put /tmp/data 0
data=$(sum 0 8)
same "first write" "$data" "$(md5sum </tmp/data | cut -d' ' -f1)"

device=$(basename "$(readlink -f /sys/block/vda/device)")
slot=$(basename "$(readlink -f /sys/block/vda/device/..)")
rebind() { # DRIVER NAME
    echo "$2" >"/sys/bus/$1/unbind"
    must_fail "/dev/vda is there without a driver" [ -e /dev/vda ]
    echo "$2" >"/sys/bus/$1/bind"
    wait_until [ -b /dev/vda ]
    same "data after rebind of $2" "$(sum 0 8)" "$data"
}
for round in 1 2 3; do
    rebind virtio/drivers/virtio_blk "$device"
    verify "round$round" --offset=$((round * 8))m --size=2m --rw=randwrite --bs=4k --iodepth=16
done
rebind pci/drivers/virtio-pci "$slot"
verify last --offset=32m --size=4m --rw=randwrite --bs=4k --iodepth=16
host_agrees 0 64
