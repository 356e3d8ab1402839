# shellcheck shell=dash
# The disk is taken out of the running machine and put in again, twice.
random 8 /tmp/data
put /tmp/data 4
data=$(md5sum </tmp/data | cut -d' ' -f1)
for round in 1 2; do
    want unplug
    wait_until [ ! -e /sys/block/vda ]
    want plug
    wait_until [ -b /dev/vda ]
    same "data after plug $round" "$(sum 4 8)" "$data"
    same "queues" "$(count /sys/block/vda/mq/*)" "$queues"
    verify "round$round" --offset=16m --size=4m --rw=randwrite --bs=4k --iodepth=16
done
host_agrees 0 64
