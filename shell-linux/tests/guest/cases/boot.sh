# shellcheck shell=dash
# The disk is what the command line of the server said.
serial=$(cat /sys/block/vda/serial) || fail "serial cannot be read"
info "serial '$serial'"
info "discard_max_bytes $(cat /sys/block/vda/queue/discard_max_bytes)"
info "write_cache $(cat /sys/block/vda/queue/write_cache)"
info "max_segments $(cat /sys/block/vda/queue/max_segments)"

same "sectors" "$(cat /sys/block/vda/size)" "$sectors"
same "queues" "$(count /sys/block/vda/mq/*)" "$queues"
same "logical block size" "$(cat /sys/block/vda/queue/logical_block_size)" 512
same "read-only" "$(blockdev --getro /dev/vda)" 0
host_agrees 0 $((sectors / 2048))
