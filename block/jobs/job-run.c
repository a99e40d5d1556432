/* SPDX-License-Identifier: MIT */
/*
 * A job's coroutine: its sleeps, its pause points and its end.
 *
 * All of it is on the main thread, so what is looked at before a yield holds until the yield, and a
 * kick that finds nobody asleep may be forgotten: the coroutine looks before it sleeps.
 */
#include "job-internal.h"

/* --- sleeping --- */

void job_wake_sleeper(void *opaque)
{
    Job *job = opaque;

    if (job->sleeper) {
        event_timer_cancel(job->timer);
        coroutine_wake(g_steal_pointer(&job->sleeper));
    }
}

void job_kick(Job *job)
{
    job_wake_sleeper(job);
}

static void coroutine_fn wait_kick(Job *job)
{
    job->sleeper = coroutine_self();
    coroutine_yield();
}

static bool should_pause(const Job *job)
{
    return job->pause_count > 0 && !job_is_cancelled(job);
}

void coroutine_fn job_pause_point(Job *job)
{
    JobStatus back = job->status;

    if (!should_pause(job)) {
        return;
    }
    if (job->driver->pause) {
        job->driver->pause(job);
    }
    if (should_pause(job)) {
        job_set_status(job, back == JOB_STATUS_READY ? JOB_STATUS_STANDBY : JOB_STATUS_PAUSED);
        job->paused = true;
        while (should_pause(job)) {
            wait_kick(job);
        }
        job->paused = false;
        job_set_status(job, back);
    }
    if (job->driver->resume) {
        job->driver->resume(job);
    }
}

void coroutine_fn job_sleep_ns(Job *job, int64_t ns)
{
    if (!job_is_cancelled(job) && !should_pause(job)) {
        event_timer_set(job->timer, event_loop_now_ns() + ns);
        wait_kick(job);
    }
    job_pause_point(job);
}

void coroutine_fn job_wait_kick(Job *job)
{
    if (!job_is_cancelled(job) && !should_pause(job)) {
        wait_kick(job);
    }
    job_pause_point(job);
}

void job_set_ready(Job *job)
{
    job_set_status(job, JOB_STATUS_READY);
    if (job->driver->announce) {
        job->driver->announce(job, JOB_IS_READY);
    }
}

/* --- from beginning to end --- */

static gboolean end_on_control(void *opaque)
{
    Job *job = opaque;

    g_clear_pointer(&job->ending, g_source_unref);
    job_end(job);
    return G_SOURCE_REMOVE;
}

/* The graph may change now, so it is a matter for GLib's main context. */
static void schedule_end(Job *job)
{
    job->ending = g_idle_source_new();
    g_source_set_priority(job->ending, G_PRIORITY_DEFAULT);
    g_source_set_callback(job->ending, end_on_control, job, NULL);
    g_source_attach(job->ending, NULL);
}

static void coroutine_fn run_job(void *opaque)
{
    Job *job = opaque;

    job_pause_point(job);
    if (!job_is_cancelled(job)) {
        job->ret = job->driver->run(job, &job->error);
    }
    job->ended = true;
    schedule_end(job);
}

void job_launch(Job *job)
{
    coroutine_start(run_job, job);
}

/* --- progress --- */

void job_progress_set_total(Job *job, int64_t total)
{
    atomic_store(&job->progress_total, total);
}

void job_progress_add(Job *job, int64_t done)
{
    atomic_fetch_add(&job->progress_current, done);
}
