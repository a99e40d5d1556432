/* SPDX-License-Identifier: MIT */
/*
 * The arithmetic of leaky buckets. Levels are in bytes or operations, of which a request may count
 * as a broken number.
 */
#include "block/throttle.h"

#define NS_PER_SECOND 1e9

/* What a bucket without a burst of its own takes at once, in seconds of its average; and what the
 * bucket that keeps a long burst at its rate takes. */
#define SLACK_SECONDS 0.1

/* Added to a clock it does not overflow. */
#define WAIT_MAX_NS (INT64_MAX / 4)

#define BUCKETS_PER_DIRECTION 4

static const ThrottleBucket buckets_of[THROTTLE_DIRECTIONS][BUCKETS_PER_DIRECTION] = {
    [THROTTLE_READ] = { THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_IOPS_TOTAL,
                        THROTTLE_IOPS_READ },
    [THROTTLE_WRITE] = { THROTTLE_BPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_IOPS_TOTAL,
                         THROTTLE_IOPS_WRITE },
};

bool throttle_config_limits(const ThrottleConfig *config, ThrottleDirection direction)
{
    for (int i = 0; i < BUCKETS_PER_DIRECTION; i++) {
        if (config->rates[buckets_of[direction][i]].average) {
            return true;
        }
    }
    return false;
}

void throttle_state_init(ThrottleState *state, const ThrottleConfig *config, int64_t now_ns)
{
    *state = (ThrottleState){ .config = *config, .leaked_ns = now_ns };
}

static void leak(ThrottleState *state, int64_t now_ns)
{
    double seconds = (now_ns - state->leaked_ns) / NS_PER_SECOND;

    if (seconds <= 0) {
        return;
    }
    state->leaked_ns = now_ns;
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        const ThrottleRate *rate = &state->config.rates[i];

        state->level[i] = MAX(0, state->level[i] - rate->average * seconds);
        state->burst_level[i] = MAX(0, state->burst_level[i] - rate->burst * seconds);
    }
}

/* Seconds until what is too much has leaked away. */
static double bucket_wait(const ThrottleState *state, ThrottleBucket bucket)
{
    const ThrottleRate *rate = &state->config.rates[bucket];
    double room =
        rate->burst ? (double)rate->burst * rate->burst_seconds : rate->average * SLACK_SECONDS;
    double wait;

    if (!rate->average) {
        return 0;
    }
    wait = (state->level[bucket] - room) / rate->average;
    if (rate->burst_seconds > 1) {
        double excess = state->burst_level[bucket] - rate->burst * SLACK_SECONDS;

        wait = MAX(wait, excess / rate->burst);
    }
    return MAX(0, wait);
}

/* Rounded up, so that after the wait the bucket has leaked enough. */
int64_t throttle_wait_ns(ThrottleState *state, ThrottleDirection direction, int64_t now_ns)
{
    double wait = 0;

    leak(state, now_ns);
    for (int i = 0; i < BUCKETS_PER_DIRECTION; i++) {
        wait = MAX(wait, bucket_wait(state, buckets_of[direction][i]));
    }
    if (wait == 0) {
        return 0;
    }
    wait *= NS_PER_SECOND;
    return wait < WAIT_MAX_NS ? (int64_t)wait + 1 : WAIT_MAX_NS;
}

void throttle_account(ThrottleState *state, ThrottleDirection direction, int64_t bytes)
{
    uint64_t size = state->config.operation_size;
    double operations = size && (uint64_t)bytes > size ? (double)bytes / size : 1;

    for (int i = 0; i < BUCKETS_PER_DIRECTION; i++) {
        ThrottleBucket bucket = buckets_of[direction][i];
        double units = bucket < THROTTLE_IOPS_TOTAL ? bytes : operations;

        state->level[bucket] += units;
        state->burst_level[bucket] += units;
    }
}
