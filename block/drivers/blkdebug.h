/* SPDX-License-Identifier: MIT */
/*
 * What the parts of the driver `blkdebug` share: its rules.
 *
 * Events and requests come from any loop. The lock guards the rules and the state; events without
 * rules and requests while no error is in force do not take it.
 */
#ifndef MERINO_DRIVERS_BLKDEBUG_H
#define MERINO_DRIVERS_BLKDEBUG_H

#include "block/driver.h"

typedef struct BlkdebugRules {
    atomic_uint at_event[BLKDEBUG_EVENT__MAX]; /* how many rules wait for it */
    atomic_uint in_force;                      /* how many errors are */

    GMutex lock;
    GPtrArray *rules;  /* Rule *, owned, in the order of their making */
    GPtrArray *active; /* those that make requests fail now, borrowed, in the same order */
    GQueue suspended;  /* Suspended *, the last first */
    int state;
    bool quiet; /* hurried: nothing is suspended */
} BlkdebugRules;

/* `rules` begins as zeroes; what is below may be called once init has been. */
void blkdebug_rules_init(BlkdebugRules *rules);
void blkdebug_rules_done(BlkdebugRules *rules);
void blkdebug_add_error(BlkdebugRules *rules, const BlkdebugInjectErrorOptions *options);
void blkdebug_add_state(BlkdebugRules *rules, const BlkdebugSetStateOptions *options);

/* Something happens; may suspend the caller. */
void coroutine_fn blkdebug_event(BlkdebugRules *rules, BlkdebugEvent event);
/* A request is about to be made: 0, or -errno when it is to fail. */
int coroutine_fn blkdebug_check(BlkdebugRules *rules, BlkdebugIOType type, int64_t offset,
                                int64_t bytes);

/* Also before init. */
void blkdebug_rules_quiet(BlkdebugRules *rules, bool quiet);

/* 0 or -errno as include/block/blkdebug.h says. */
void blkdebug_add_break(BlkdebugRules *rules, BlkdebugEvent event, const char *tag);
int blkdebug_drop_break(BlkdebugRules *rules, const char *tag);
int blkdebug_let_go(BlkdebugRules *rules, const char *tag);
bool blkdebug_holds(BlkdebugRules *rules, const char *tag);

/* Rules from a file. */
bool blkdebug_read_config(BlkdebugRules *rules, const char *path, GError **error);

#endif
