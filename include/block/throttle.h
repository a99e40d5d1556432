/* SPDX-License-Identifier: MIT */
/*
 * Throttling: leaky buckets, and the groups of users that share them.
 *
 * A rate is a bucket that leaks `average` units a second. What a request moves is poured in when it
 * begins, and the next one waits while the bucket is too full. How full that is says the burst:
 * without one a tenth of a second's worth; with `burst` and a length of one second, `burst` units
 * at once; with a longer length, `burst` units a second (a second bucket sees to that) for so many
 * seconds. A request may be larger than any bucket; the ones after it pay for it.
 *
 * A ThrottleState is plain arithmetic on a clock that the caller reads. A ThrottleGroup is an
 * object made by users, whose members (the `throttle` nodes) take turns, one request a turn; reads
 * and writes take turns as well where one limit holds for both. Groups are made and deleted, and
 * members join and leave, on the main thread; requests come from any loop.
 */
#ifndef MERINO_BLOCK_THROTTLE_H
#define MERINO_BLOCK_THROTTLE_H

#include "qapi/qapi-types.h"
#include "util/coroutine.h"

typedef enum ThrottleDirection {
    THROTTLE_READ,
    THROTTLE_WRITE,
    THROTTLE_DIRECTIONS
} ThrottleDirection;

typedef enum ThrottleBucket {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BUCKETS,
} ThrottleBucket;

/* In bytes or operations a second. As users gave it until throttle_config_check() has passed. */
typedef struct ThrottleRate {
    int64_t average; /* 0: no limit */
    int64_t burst;   /* 0: a tenth of `average`, at once */
    int64_t burst_seconds;
} ThrottleRate;

typedef struct ThrottleConfig {
    ThrottleRate rates[THROTTLE_BUCKETS];
    uint64_t operation_size; /* bytes that count as one operation; 0: whatever is one request */
} ThrottleConfig;

/* --- limits, in QEMU's words --- */

void throttle_config_init(ThrottleConfig *config);
/* From an object's properties: the x- ones, then `limits` over them. The whole is checked when
 * there are `limits`. */
bool throttle_config_parse(const ThrottleGroupProperties *properties, ThrottleConfig *ret,
                           GError **error);
bool throttle_config_check(const ThrottleConfig *config, GError **error);
/* Whether requests of that kind can ever have to wait. */
bool throttle_config_limits(const ThrottleConfig *config, ThrottleDirection direction);

/* --- buckets --- */

typedef struct ThrottleState {
    ThrottleConfig config;
    double level[THROTTLE_BUCKETS];
    double burst_level[THROTTLE_BUCKETS];
    int64_t leaked_ns; /* when they last leaked */
} ThrottleState;

void throttle_state_init(ThrottleState *state, const ThrottleConfig *config, int64_t now_ns);
/* How long a request has to wait from now; 0: it may begin. */
int64_t throttle_wait_ns(ThrottleState *state, ThrottleDirection direction, int64_t now_ns);
/* A request begins. */
void throttle_account(ThrottleState *state, ThrottleDirection direction, int64_t bytes);

/* --- groups --- */

typedef struct ThrottleGroup ThrottleGroup;

/* The caller has seen to it that no object has this id. Fails when the limits are no good. */
bool throttle_group_add(const char *id, const ThrottleConfig *config, GError **error);
bool throttle_group_delete(const char *id, GError **error); /* refused while it has members */
bool throttle_group_exists(const char *id);
ThrottleGroup *throttle_group_find(const char *id, GError **error);

/* Requests of one user. */
typedef struct ThrottleMember {
    ThrottleGroup *group;
    /* Guarded by the group's lock: */
    bool open;                           /* nobody waits */
    GQueue waiting[THROTTLE_DIRECTIONS]; /* requests, first come first */
    GList turn[THROTTLE_DIRECTIONS];     /* its place among the members that wait */
} ThrottleMember;

/* A member begins as zeroes. It may be opened and closed before it joins, and while it changes the
 * group. */
void throttle_member_join(ThrottleMember *member, ThrottleGroup *group);
void throttle_member_leave(ThrottleMember *member); /* no request waits */

/* Wait for the request's turn, and begin it. */
void coroutine_fn throttle_member_wait(ThrottleMember *member, ThrottleDirection direction,
                                       int64_t bytes);

/* Open: let all that wait go, and nobody wait any more, until it is closed again. What goes
 * through is accounted all the same. */
void throttle_member_open(ThrottleMember *member);
void throttle_member_close(ThrottleMember *member);

/* --- for tests --- */

/* Another clock for all groups that are made from now on; NULL: the real one. */
void throttle_set_clock(int64_t (*clock)(void));
/* Look which requests may begin now, as timers do. */
void throttle_group_run(ThrottleGroup *group);
/* How many wait. */
unsigned throttle_group_waiting(ThrottleGroup *group);

#endif
