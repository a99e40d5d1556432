/* SPDX-License-Identifier: MIT */
/*
 * The registry of jobs, their statuses, and what users do to them.
 */
#include "block/node.h"
#include "job-internal.h"
#include "qapi/qapi-events.h"
#include "util/error.h"
#include "util/identifier.h"

static Job *newest;

/* --- statuses --- */

#define BIT(status) (1u << JOB_STATUS_##status)

/* Where a job may go from each status. */
static const unsigned transitions[JOB_STATUS__MAX] = {
    [JOB_STATUS_UNDEFINED] = BIT(CREATED),
    [JOB_STATUS_CREATED] = BIT(RUNNING) | BIT(ABORTING) | BIT(NULL),
    [JOB_STATUS_RUNNING] = BIT(PAUSED) | BIT(READY) | BIT(WAITING) | BIT(ABORTING),
    [JOB_STATUS_PAUSED] = BIT(RUNNING),
    [JOB_STATUS_READY] = BIT(STANDBY) | BIT(WAITING) | BIT(ABORTING),
    [JOB_STATUS_STANDBY] = BIT(READY),
    [JOB_STATUS_WAITING] = BIT(PENDING) | BIT(ABORTING),
    [JOB_STATUS_PENDING] = BIT(CONCLUDED) | BIT(ABORTING),
    [JOB_STATUS_ABORTING] = BIT(CONCLUDED),
    [JOB_STATUS_CONCLUDED] = BIT(NULL),
};

/* A job whose `run` is on its way. */
#define AT_WORK (BIT(CREATED) | BIT(RUNNING) | BIT(PAUSED) | BIT(READY) | BIT(STANDBY))

/* In which statuses each verb is allowed. */
static const struct {
    const char *name;
    unsigned allowed;
} verbs[JOB_VERB__MAX] = {
    [JOB_VERB_CANCEL] = { "cancel", AT_WORK | BIT(WAITING) | BIT(PENDING) },
    [JOB_VERB_PAUSE] = { "pause", AT_WORK },
    [JOB_VERB_RESUME] = { "resume", AT_WORK },
    [JOB_VERB_SET_SPEED] = { "set-speed", AT_WORK },
    [JOB_VERB_COMPLETE] = { "complete", BIT(READY) },
    [JOB_VERB_FINALIZE] = { "finalize", BIT(PENDING) },
    [JOB_VERB_DISMISS] = { "dismiss", BIT(CONCLUDED) },
};

void job_set_status(Job *job, JobStatus status)
{
    g_assert(transitions[job->status] & (1u << status));
    job->status = status;
    if (job->id) {
        qapi_event_send_job_status_change(job->id, status);
    }
}

bool job_allows(const Job *job, JobVerb verb, GError **error)
{
    if (verbs[verb].allowed & (1u << job->status)) {
        return true;
    }
    merino_error(error, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                 JobStatus_str(job->status), verbs[verb].name);
    return false;
}

/* --- the registry --- */

Job *job_next(Job *previous)
{
    return previous ? previous->older : newest;
}

static Job *find(const char *id)
{
    for (Job *job = newest; job; job = job->older) {
        if (job->id && strcmp(job->id, id) == 0) {
            return job;
        }
    }
    return NULL;
}

Job *job_lookup(const char *id, GError **error)
{
    Job *job = find(id);

    if (!job) {
        merino_error(error, "Job not found");
    }
    return job;
}

static void list_job(Job *job)
{
    job->older = newest;
    if (newest) {
        newest->newer = job;
    }
    newest = job;
}

static void unlist_job(Job *job)
{
    if (job->newer) {
        job->newer->older = job->older;
    } else {
        newest = job->older;
    }
    if (job->older) {
        job->older->newer = job->newer;
    }
    job->older = job->newer = NULL;
}

const char *job_type_name(const Job *job)
{
    return JobType_str(job->driver->type);
}

static JobInfo *job_info(Job *job)
{
    JobInfo *info = g_new0(JobInfo, 1);

    info->id = g_strdup(job->id);
    info->type = job->driver->type;
    info->status = job->status;
    info->current_progress = atomic_load(&job->progress_current);
    info->total_progress = atomic_load(&job->progress_total);
    info->error = job->error ? merino_error_text(job->error) : NULL;
    return info;
}

JobInfoList *job_query(void)
{
    JobInfoList *list = g_new0(JobInfoList, 1);

    for (Job *job = newest; job; job = job->older) {
        if (job->id) {
            job_info_list_append(list, job_info(job));
        }
    }
    return list;
}

/* --- life --- */

static bool check_id(const char *id, GError **error)
{
    if (!identifier_is_valid(id)) {
        merino_error(error, "Invalid job ID '%s'", id);
        return false;
    }
    if (find(id)) {
        merino_error(error, "Job ID '%s' already in use", id);
        return false;
    }
    return true;
}

Job *job_create(const char *id, const JobDriver *driver, JobTxn *txn, unsigned flags,
                GError **error)
{
    Job *job;

    if (id && !check_id(id, error)) {
        return NULL;
    }
    job = g_new0(Job, 1);
    job->id = g_strdup(id);
    job->driver = driver;
    job->state = g_malloc0(driver->state_size);
    job->refs = 1;
    job->auto_finalize = !(flags & JOB_MANUAL_FINALIZE);
    job->auto_dismiss = !(flags & JOB_MANUAL_DISMISS);
    job->timer = event_timer_new(event_loop_main(), job_wake_sleeper, job);
    if (txn) {
        job_txn_add(txn, job);
    } else {
        g_autoptr(JobTxn) own = job_txn_new();

        job_txn_add(own, job);
    }
    list_job(job);
    job_set_status(job, JOB_STATUS_CREATED);
    return job;
}

Job *job_ref(Job *job)
{
    job->refs++;
    return job;
}

void job_unref(Job *job)
{
    if (--job->refs > 0) {
        return;
    }
    g_assert(job->status == JOB_STATUS_NULL && !job->ending);
    if (job->driver->free) {
        job->driver->free(job);
    }
    event_timer_free(job->timer);
    g_clear_error(&job->error);
    g_free(job->state);
    g_free(job->id);
    g_free(job);
}

void job_dismiss(Job *job)
{
    job_txn_remove(job);
    unlist_job(job);
    job_set_status(job, JOB_STATUS_NULL);
    job_unref(job);
}

void job_discard(Job *job)
{
    g_assert(job->status == JOB_STATUS_CREATED);
    job_dismiss(job);
}

void job_start(Job *job)
{
    g_assert(job->status == JOB_STATUS_CREATED && !job->ended);
    job->started = true;
    job_set_status(job, JOB_STATUS_RUNNING);
    job_launch(job);
}

/* --- pausing and cancelling --- */

void job_pause(Job *job)
{
    job->pause_count++;
    if (!job->paused) {
        job_kick(job);
    }
}

void job_resume(Job *job)
{
    g_assert(job->pause_count > 0);
    if (--job->pause_count == 0) {
        job_kick(job);
    }
}

/* A user's pause ends with the job's work. */
static void drop_user_pause(Job *job)
{
    if (job->user_paused) {
        if (job->driver->user_resume) {
            job->driver->user_resume(job);
        }
        job->user_paused = false;
        job_resume(job);
    }
}

void job_cancel(Job *job, bool force)
{
    bool by_force = force;

    if (job->status >= JOB_STATUS_ABORTING) {
        return;
    }
    if (job->ended) {
        job_txn_cancel_ended(job);
        return;
    }
    if (!job->driver->cancel) {
        by_force = true;
    } else if (job->driver->cancel(job, force)) {
        by_force = true;
    }
    drop_user_pause(job);
    job->cancelled = true;
    job->force_cancelled |= by_force;
    if (job->status == JOB_STATUS_CREATED) {
        job->ended = true;
        job_end(job);
    } else {
        job_kick(job);
    }
}

bool job_is_cancelled(const Job *job)
{
    return job->force_cancelled;
}

bool job_cancel_is_asked(const Job *job)
{
    return job->cancelled;
}

/* --- verbs of users --- */

bool job_user_pause(Job *job, GError **error)
{
    if (!job_allows(job, JOB_VERB_PAUSE, error)) {
        return false;
    }
    if (job->user_paused) {
        merino_error(error, "Job is already paused");
        return false;
    }
    job->user_paused = true;
    job_pause(job);
    return true;
}

bool job_user_resume(Job *job, GError **error)
{
    if (!job->user_paused) {
        merino_error(error, "Can't resume a job that was not paused");
        return false;
    }
    if (!job_allows(job, JOB_VERB_RESUME, error)) {
        return false;
    }
    drop_user_pause(job);
    return true;
}

bool job_user_cancel(Job *job, bool force, GError **error)
{
    if (!job_allows(job, JOB_VERB_CANCEL, error)) {
        return false;
    }
    job_cancel(job, force);
    return true;
}

bool job_user_complete(Job *job, GError **error)
{
    if (!job_allows(job, JOB_VERB_COMPLETE, error)) {
        return false;
    }
    if (job->cancelled || !job->driver->complete) {
        merino_error(error, "The active block job '%s' cannot be completed", job->id);
        return false;
    }
    return job->driver->complete(job, error);
}

bool job_user_finalize(Job *job, GError **error)
{
    if (!job_allows(job, JOB_VERB_FINALIZE, error)) {
        return false;
    }
    job_txn_finalize(job);
    return true;
}

bool job_user_dismiss(Job *job, GError **error)
{
    if (!job_allows(job, JOB_VERB_DISMISS, error)) {
        return false;
    }
    job_dismiss(job);
    return true;
}

/* --- waiting for the end --- */

static void wait_concluded(Job *job)
{
    while (job->status < JOB_STATUS_CONCLUDED) {
        g_main_context_iteration(NULL, true);
    }
    if (job->status == JOB_STATUS_CONCLUDED) {
        job_dismiss(job);
    }
}

int job_finish(Job *job, GError **error)
{
    int ret;

    job_ref(job);
    wait_concluded(job);
    ret = job->ret;
    if (ret < 0) {
        g_propagate_error(error, g_steal_pointer(&job->error));
    }
    job_unref(job);
    return ret;
}

/* A job that is in the middle of requests ends behind them. */
void job_cancel_all(void)
{
    HurrySection *hurry = hurry_begin_all();

    while (newest) {
        Job *job = job_ref(newest);

        job_cancel(job, true);
        wait_concluded(job);
        job_unref(job);
    }
    hurry_end(hurry);
}
