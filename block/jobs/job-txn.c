/* SPDX-License-Identifier: MIT */
/*
 * How jobs end: together with the others of their transaction.
 *
 * A job that ended well waits until all of its transaction have. Then all are pending; when none of
 * them waits for its user, or a user finalizes one, all prepare, and if that succeeds, all commit.
 * When one fails or is cancelled, the others are cancelled, and once all have ended all abort. A
 * job without a transaction is the only one of its own.
 *
 * Everything here is called on the control plane. Finalizing may free jobs, so the walks hold
 * references.
 */
#include "job-internal.h"
#include "util/error.h"

#include <errno.h>

struct JobTxn {
    GPtrArray *jobs; /* Job *, not owned */
    unsigned refs;   /* one a job, one for the creator */
    bool aborting;
    bool busy; /* its jobs are being stopped or concluded, one by one */
};

JobTxn *job_txn_new(void)
{
    JobTxn *txn = g_new0(JobTxn, 1);

    txn->jobs = g_ptr_array_new();
    txn->refs = 1;
    return txn;
}

JobTxn *job_txn_ref(JobTxn *txn)
{
    txn->refs++;
    return txn;
}

void job_txn_unref(JobTxn *txn)
{
    if (txn && --txn->refs == 0) {
        g_ptr_array_unref(txn->jobs);
        g_free(txn);
    }
}

void job_txn_add(JobTxn *txn, Job *job)
{
    g_assert(!job->txn);
    job->txn = job_txn_ref(txn);
    g_ptr_array_add(txn->jobs, job);
}

void job_txn_remove(Job *job)
{
    if (job->txn) {
        g_ptr_array_remove(job->txn->jobs, job);
        job_txn_unref(g_steal_pointer(&job->txn));
    }
}

/* Its jobs, with references, in the order in which they were added. */
static GPtrArray *jobs_of(const JobTxn *txn)
{
    GPtrArray *jobs = g_ptr_array_new_with_free_func((GDestroyNotify)job_unref);

    for (guint i = 0; i < txn->jobs->len; i++) {
        g_ptr_array_add(jobs, job_ref(g_ptr_array_index(txn->jobs, i)));
    }
    return jobs;
}

/* Its `run` has returned, and job_end() was called. */
static bool has_ended(const Job *job)
{
    return job->ended && !job->ending;
}

static bool all_ended(const JobTxn *txn)
{
    for (guint i = 0; i < txn->jobs->len; i++) {
        const Job *job = g_ptr_array_index(txn->jobs, i);

        if (!has_ended(job)) {
            return false;
        }
    }
    return true;
}

/* --- the end of one --- */

static void fail(Job *job, int ret)
{
    job->ret = ret;
    if (!job->error) {
        merino_error(&job->error, "%s", g_strerror(-ret));
    }
    if (job->status != JOB_STATUS_ABORTING) {
        job_set_status(job, JOB_STATUS_ABORTING);
    }
}

static void conclude(Job *job)
{
    const JobDriver *driver = job->driver;

    if (job->ret == 0 && driver->commit) {
        driver->commit(job);
    } else if (job->ret < 0 && driver->abort) {
        driver->abort(job);
    }
    if (driver->clean) {
        driver->clean(job);
    }
    if (job->started && driver->announce) {
        driver->announce(job, job->force_cancelled ? JOB_WAS_CANCELLED : JOB_HAS_COMPLETED);
    }
    job_txn_remove(job);
    job_set_status(job, JOB_STATUS_CONCLUDED);
    if (job->auto_dismiss || !job->started) {
        job_dismiss(job);
    }
}

static void conclude_all(JobTxn *txn)
{
    g_autoptr(GPtrArray) jobs = jobs_of(txn);

    txn->busy = true;
    for (guint i = 0; i < jobs->len; i++) {
        conclude(g_ptr_array_index(jobs, i));
    }
}

/* --- failure --- */

/* Of one whose `run` has returned. What has failed by itself keeps its error. */
static void make_cancelled(Job *job)
{
    if (job->ret == 0) {
        job->cancelled = true;
        job->force_cancelled = true;
        fail(job, -ECANCELED);
    }
}

static void stop_all(JobTxn *txn, const GPtrArray *jobs)
{
    txn->aborting = true;
    txn->busy = true;
    for (guint i = 0; i < jobs->len; i++) {
        Job *job = g_ptr_array_index(jobs, i);

        if (has_ended(job)) {
            make_cancelled(job);
        } else {
            job_cancel(job, true);
        }
    }
    txn->busy = false;
}

/* One of them has failed: stop the others, and conclude when the last has stopped. */
static void abort_all(JobTxn *txn)
{
    g_autoptr(GPtrArray) jobs = jobs_of(txn);

    job_txn_ref(txn);
    if (!txn->aborting) {
        stop_all(txn, jobs);
    }
    if (!txn->busy && all_ended(txn)) {
        conclude_all(txn);
    }
    job_txn_unref(txn);
}

/* --- success --- */

static bool prepare_all(const GPtrArray *jobs)
{
    for (guint i = 0; i < jobs->len; i++) {
        Job *job = g_ptr_array_index(jobs, i);
        int ret = job->driver->prepare ? job->driver->prepare(job, &job->error) : 0;

        if (ret < 0) {
            fail(job, ret);
            return false;
        }
    }
    return true;
}

void job_txn_finalize(Job *job)
{
    JobTxn *txn = job_txn_ref(job->txn);
    g_autoptr(GPtrArray) jobs = jobs_of(txn);

    if (prepare_all(jobs)) {
        conclude_all(txn);
    } else {
        abort_all(txn);
    }
    job_txn_unref(txn);
}

static void make_pending(Job *job)
{
    job_set_status(job, JOB_STATUS_PENDING);
    if (!job->auto_finalize && job->driver->announce) {
        job->driver->announce(job, JOB_IS_PENDING);
    }
}

static void become_pending(JobTxn *txn)
{
    g_autoptr(GPtrArray) jobs = jobs_of(txn);
    bool automatic = true;

    for (guint i = 0; i < jobs->len; i++) {
        Job *job = g_ptr_array_index(jobs, i);

        make_pending(job);
        automatic &= job->auto_finalize;
    }
    if (automatic) {
        job_txn_finalize(g_ptr_array_index(jobs, 0));
    }
}

void job_end(Job *job)
{
    JobTxn *txn = job->txn;

    if (job->ret == 0 && (job_is_cancelled(job) || txn->aborting)) {
        make_cancelled(job);
    } else if (job->ret < 0) {
        fail(job, job->ret);
    }
    if (job->ret < 0) {
        abort_all(txn);
        return;
    }
    job_set_status(job, JOB_STATUS_WAITING);
    if (all_ended(txn)) {
        become_pending(txn);
    }
}

void job_txn_cancel_ended(Job *job)
{
    if (has_ended(job)) {
        make_cancelled(job);
        abort_all(job->txn);
    } else {
        job->cancelled = true;
        job->force_cancelled = true;
    }
}
