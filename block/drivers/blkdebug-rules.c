/* SPDX-License-Identifier: MIT */
/*
 * The rules of blkdebug: what an event does, and which requests fail.
 *
 * An event looks at its rules as the state was before it. Those that inject errors come into force
 * together, in place of all that were; breakpoints are used up. Where two rules set the state
 * the one made first decides, and of errors that fit a request the one made first is returned.
 */
#include "blkdebug.h"
#include "block/blkdebug.h"
#include "util/size.h"

#include <errno.h>

#define SECTOR      512
#define FIRST_STATE 1
#define ANY_OFFSET  (-1)
#define NO_OFFSET   (-2) /* outside of every disk */

/* Block status fails only where a rule asks for it. */
#define DEFAULT_TYPES                                                                              \
    (1u << BLKDEBUG_IO_TYPE_READ | 1u << BLKDEBUG_IO_TYPE_WRITE |                                  \
     1u << BLKDEBUG_IO_TYPE_WRITE_ZEROES | 1u << BLKDEBUG_IO_TYPE_DISCARD |                        \
     1u << BLKDEBUG_IO_TYPE_FLUSH)

typedef enum RuleKind {
    RULE_ERROR,
    RULE_STATE,
    RULE_BREAK
} RuleKind;

typedef struct Rule {
    RuleKind kind;
    BlkdebugEvent event;
    int state; /* 0: any */

    /* RULE_ERROR */
    unsigned types; /* bits numbered by BlkdebugIOType */
    int error;      /* errno; 0: requests that fit do not fail */
    int64_t offset;
    bool once, immediately;

    int new_state; /* RULE_STATE */
    char *tag;     /* RULE_BREAK */
} Rule;

/* A request that met breakpoints; it goes on when it has been let go from each. */
typedef struct Halt {
    Coroutine *co;
    unsigned n;
} Halt;

typedef struct Suspended {
    Halt *halt;
    char *tag;
} Suspended;

static void (*reporter)(const char *tag, bool suspended);

void blkdebug_set_reporter(void (*fn)(const char *tag, bool suspended))
{
    reporter = fn;
}

static void report(const char *tag, bool suspended)
{
    if (reporter) {
        reporter(tag, suspended);
    }
}

/* --- making and dropping rules --- */

static void rule_free(void *opaque)
{
    Rule *rule = opaque;

    g_free(rule->tag);
    g_free(rule);
}

void blkdebug_rules_init(BlkdebugRules *rules)
{
    rules->rules = g_ptr_array_new_with_free_func(rule_free);
    rules->active = g_ptr_array_new();
    rules->state = FIRST_STATE;
}

void blkdebug_rules_done(BlkdebugRules *rules)
{
    g_assert(g_queue_is_empty(&rules->suspended));
    g_ptr_array_unref(rules->active);
    g_ptr_array_unref(rules->rules);
    g_mutex_clear(&rules->lock);
}

static void add(BlkdebugRules *rules, Rule rule)
{
    g_mutex_lock(&rules->lock);
    g_ptr_array_add(rules->rules, g_memdup2(&rule, sizeof(rule)));
    atomic_fetch_add(&rules->at_event[rule.event], 1);
    g_mutex_unlock(&rules->lock);
}

/* With the lock held. */
static void drop(BlkdebugRules *rules, Rule *rule)
{
    atomic_fetch_sub(&rules->at_event[rule->event], 1);
    g_ptr_array_remove(rules->active, rule);
    atomic_store(&rules->in_force, rules->active->len);
    g_ptr_array_remove(rules->rules, rule);
}

static int64_t offset_of_sector(const BlkdebugInjectErrorOptions *options)
{
    if (!options->has_sector || options->sector == -1) {
        return ANY_OFFSET;
    }
    return options->sector < 0 || options->sector > INT64_MAX / SECTOR ? NO_OFFSET
                                                                       : options->sector * SECTOR;
}

void blkdebug_add_error(BlkdebugRules *rules, const BlkdebugInjectErrorOptions *options)
{
    add(rules, (Rule){
                   .kind = RULE_ERROR,
                   .event = options->event,
                   .state = options->has_state ? (int)options->state : 0,
                   .types = options->has_iotype ? 1u << options->iotype : DEFAULT_TYPES,
                   .error = options->has_errno ? MAX((int)options->q_errno, 0) : EIO,
                   .offset = offset_of_sector(options),
                   .once = options->has_once && options->once,
                   .immediately = options->has_immediately && options->immediately,
               });
}

void blkdebug_add_state(BlkdebugRules *rules, const BlkdebugSetStateOptions *options)
{
    add(rules, (Rule){
                   .kind = RULE_STATE,
                   .event = options->event,
                   .state = options->has_state ? (int)options->state : 0,
                   .new_state = (int)options->new_state,
               });
}

void blkdebug_add_break(BlkdebugRules *rules, BlkdebugEvent event, const char *tag)
{
    add(rules, (Rule){ .kind = RULE_BREAK, .event = event, .tag = g_strdup(tag) });
}

/* --- suspended requests; with the lock held --- */

static void let_go(BlkdebugRules *rules, GList *link)
{
    Suspended *suspended = link->data;
    Halt *halt = suspended->halt;

    report(suspended->tag, false);
    g_queue_delete_link(&rules->suspended, link);
    g_free(suspended->tag);
    g_free(suspended);
    halt->n--;
    if (halt->n == 0) {
        coroutine_wake(halt->co);
    }
}

static GList *find_suspended(BlkdebugRules *rules, const char *tag)
{
    for (GList *link = rules->suspended.head; link; link = link->next) {
        const Suspended *suspended = link->data;

        if (strcmp(suspended->tag, tag) == 0) {
            return link;
        }
    }
    return NULL;
}

static void suspend(BlkdebugRules *rules, Rule *rule, Halt *halt)
{
    Suspended *suspended = g_new(Suspended, 1);

    *suspended = (Suspended){ halt, g_steal_pointer(&rule->tag) };
    g_queue_push_head(&rules->suspended, suspended);
    halt->n++;
    report(suspended->tag, true);
    drop(rules, rule);
}

/* --- events --- */

/* Put the errors of this event into force, if there are any. With the lock held. */
static void activate(BlkdebugRules *rules, BlkdebugEvent event)
{
    bool first = true;

    for (guint i = 0; i < rules->rules->len; i++) {
        Rule *rule = g_ptr_array_index(rules->rules, i);

        if (rule->kind != RULE_ERROR || rule->event != event ||
            (rule->state && rule->state != rules->state)) {
            continue;
        }
        if (first) {
            g_ptr_array_set_size(rules->active, 0);
            first = false;
        }
        g_ptr_array_add(rules->active, rule);
    }
    atomic_store(&rules->in_force, rules->active->len);
}

/* The rest, the rules made last first. With the lock held. */
static void break_and_set_state(BlkdebugRules *rules, BlkdebugEvent event, Halt *halt)
{
    int new_state = rules->state;

    for (guint i = rules->rules->len; i-- > 0;) {
        Rule *rule = g_ptr_array_index(rules->rules, i);

        if (rule->event != event || (rule->state && rule->state != rules->state)) {
            continue;
        }
        if (rule->kind == RULE_STATE) {
            new_state = rule->new_state;
        } else if (rule->kind == RULE_BREAK && !rules->quiet) {
            suspend(rules, rule, halt);
        }
    }
    rules->state = new_state;
}

void coroutine_fn blkdebug_event(BlkdebugRules *rules, BlkdebugEvent event)
{
    Halt halt = { .co = coroutine_self() };
    bool wait;

    if (atomic_load_explicit(&rules->at_event[event], memory_order_acquire) == 0) {
        return;
    }
    g_mutex_lock(&rules->lock);
    activate(rules, event);
    break_and_set_state(rules, event, &halt);
    wait = halt.n > 0;
    g_mutex_unlock(&rules->lock);
    if (wait) {
        coroutine_yield();
    }
}

/* --- requests --- */

static Rule *find_error(const BlkdebugRules *rules, BlkdebugIOType type, int64_t offset,
                        int64_t bytes)
{
    for (guint i = 0; i < rules->active->len; i++) {
        Rule *rule = g_ptr_array_index(rules->active, i);
        bool touched =
            rule->offset == ANY_OFFSET || (rule->offset >= offset && rule->offset - offset < bytes);

        if (touched && (rule->types & 1u << type)) {
            return rule;
        }
    }
    return NULL;
}

int coroutine_fn blkdebug_check(BlkdebugRules *rules, BlkdebugIOType type, int64_t offset,
                                int64_t bytes)
{
    bool immediately = true;
    int error = 0;
    Rule *rule;

    if (atomic_load_explicit(&rules->in_force, memory_order_acquire) == 0) {
        return 0;
    }
    g_mutex_lock(&rules->lock);
    rule = find_error(rules, type, offset, bytes);
    if (rule && rule->error) {
        error = rule->error;
        immediately = rule->immediately;
        if (rule->once) {
            drop(rules, rule);
        }
    }
    g_mutex_unlock(&rules->lock);
    if (!immediately) {
        coroutine_pause();
    }
    return -error;
}

/* --- breakpoints --- */

int blkdebug_drop_break(BlkdebugRules *rules, const char *tag)
{
    int ret = -ENOENT;
    GList *link;

    g_mutex_lock(&rules->lock);
    for (guint i = rules->rules->len; i-- > 0;) {
        Rule *rule = g_ptr_array_index(rules->rules, i);

        if (rule->kind == RULE_BREAK && strcmp(rule->tag, tag) == 0) {
            drop(rules, rule);
            ret = 0;
        }
    }
    while ((link = find_suspended(rules, tag))) {
        let_go(rules, link);
        ret = 0;
    }
    g_mutex_unlock(&rules->lock);
    return ret;
}

int blkdebug_let_go(BlkdebugRules *rules, const char *tag)
{
    GList *link;

    g_mutex_lock(&rules->lock);
    link = find_suspended(rules, tag);
    if (link) {
        let_go(rules, link);
    }
    g_mutex_unlock(&rules->lock);
    return link ? 0 : -ENOENT;
}

bool blkdebug_holds(BlkdebugRules *rules, const char *tag)
{
    bool holds;

    g_mutex_lock(&rules->lock);
    holds = find_suspended(rules, tag);
    g_mutex_unlock(&rules->lock);
    return holds;
}

void blkdebug_rules_quiet(BlkdebugRules *rules, bool quiet)
{
    g_mutex_lock(&rules->lock);
    rules->quiet = quiet;
    while (quiet && !g_queue_is_empty(&rules->suspended)) {
        let_go(rules, rules->suspended.head);
    }
    g_mutex_unlock(&rules->lock);
}
