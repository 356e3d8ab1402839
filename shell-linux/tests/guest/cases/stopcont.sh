# shellcheck shell=dash
# The host stops and continues the machine several times while checked writes run.
writes() {
    round=0
    until [ -e /tmp/enough ]; do
        round=$((round + 1))
        # Other data each time: the host wants to see the image change.
        verify "round$round" --size=16m --rw=randwrite --bs=4k --iodepth=32 --randseed=$round
    done
}
writes &
job=$!
want stop_and_continue
touch /tmp/enough
if ! wait $job; then fail "$(cat /tmp/reason)"; fi
host_agrees 0 64
