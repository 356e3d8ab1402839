# shellcheck shell=dash
# The host stops and continues the machine several times while checked writes run.
writes() {
    round=0
    until [ -e /tmp/enough ]; do
        round=$((round + 1))
        verify "round$round" --size=16m --rw=randwrite --bs=4k --iodepth=32 --loops=4 \
            --randseed=$round
    done
}
writes &
job=$!
wait_until [ "$(pidof fio)" ]
want stop_and_continue
touch /tmp/enough
if ! wait $job; then fail "$(cat /tmp/reason)"; fi
host_agrees 0 64
