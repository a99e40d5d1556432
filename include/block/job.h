/* SPDX-License-Identifier: MIT */
/*
 * Jobs: work that goes on after the command that began it was answered.
 *
 * A job is a coroutine of the main loop, run by a JobDriver's `run`; what it wants done elsewhere
 * it starts there by itself. It passes through the statuses of QMP's JobStatus (the tables are in
 * block/jobs/job.c). While it runs it asks for pauses and cancelling at points of its own choosing,
 * the pause points. When `run` has returned, the rest happens on the control plane, called from
 * GLib's main context: the job waits until all jobs of its transaction have come that far, then
 * either all are finalized (prepare, commit) or all are aborted.
 *
 * The registry owns jobs, from job_create() until they are dismissed. A job with an id is seen by
 * QMP clients, who may address the verbs to it and get the events; one without is a tool's own.
 *
 * Calling context: the main thread; functions marked coroutine_fn are for the job's coroutine.
 */
#ifndef MERINO_BLOCK_JOB_H
#define MERINO_BLOCK_JOB_H

#include "qapi/qapi-types.h"
#include "util/event-loop.h"

typedef struct Job Job;
typedef struct JobTxn JobTxn;

/* What users do to a job. */
typedef enum JobVerb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_COMPLETE,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS,
    JOB_VERB__MAX,
} JobVerb;

/* Moments that a kind of jobs may have events of its own for. */
typedef enum JobMilestone {
    JOB_IS_READY,
    JOB_IS_PENDING, /* and waits for its user */
    JOB_HAS_COMPLETED,
    JOB_WAS_CANCELLED,
} JobMilestone;

typedef struct JobDriver {
    JobType type;
    size_t state_size;

    /* The work. Returns 0, or -errno with or without an error in words. */
    int coroutine_fn (*run)(Job *job, GError **error);
    /* Around a pause, in the job's coroutine. NULL: nothing to do. */
    void coroutine_fn (*pause)(Job *job);
    void coroutine_fn (*resume)(Job *job);
    /* A user resumes the job. NULL: nothing to do. */
    void (*user_resume)(Job *job);
    /* Lets a ready job end. It makes `run` see to it, and kicks the job. NULL: cannot be asked. */
    bool (*complete)(Job *job, GError **error);
    /* The job was asked to stop; returns whether by force: if not, it may as well end as if
     * completed. NULL: always by force. */
    bool (*cancel)(Job *job, bool force);

    /* After `run`, on the control plane, where all may be NULL: prepare may still fail; then commit
     * or abort, then clean. */
    int (*prepare)(Job *job, GError **error);
    void (*commit)(Job *job);
    void (*abort)(Job *job);
    void (*clean)(Job *job);
    void (*announce)(Job *job, JobMilestone milestone);
    /* The job goes: free what `state` holds. Also of jobs that never ran. */
    void (*free)(Job *job);
} JobDriver;

struct Job {
    char *id; /* or NULL */
    const JobDriver *driver;
    void *state; /* the driver's, driver->state_size zeroed bytes */
    JobStatus status;
    Job *older, *newer; /* the registry's order */
    unsigned refs;
    JobTxn *txn;

    bool auto_finalize; /* does not stop at pending */
    bool auto_dismiss;  /* is forgotten when it concludes */

    int pause_count; /* who wants it paused */
    bool user_paused;
    bool paused;          /* it is at a pause point, waiting */
    bool cancelled;       /* asked to stop */
    bool force_cancelled; /* and as a failure */
    bool started;
    bool ended; /* `run` has returned, or never will begin */

    int ret;       /* 0 or -errno, once ended */
    GError *error; /* why, once aborting */
    _Atomic int64_t progress_current, progress_total;

    Coroutine *sleeper; /* the coroutine, while it can be kicked */
    EventTimer *timer;  /* of its sleep */
    GSource *ending;    /* waits in GLib's main context, once `run` has returned */
};

typedef enum JobFlags {
    JOB_MANUAL_FINALIZE = 1 << 0,
    JOB_MANUAL_DISMISS = 1 << 1,
} JobFlags;

/* --- life --- */

/* A job that has not begun. `txn` NULL: one of its own. */
Job *job_create(const char *id, const JobDriver *driver, JobTxn *txn, unsigned flags,
                GError **error);
/* Let it run, at once until it first waits. */
void job_start(Job *job);
/* A job that will not be started after all. */
void job_discard(Job *job);

Job *job_ref(Job *job);
void job_unref(Job *job);

/* In QEMU's words. */
Job *job_lookup(const char *id, GError **error);
/* Newest first: job_next(NULL) is the newest. */
Job *job_next(Job *previous);
JobInfoList *job_query(void);
const char *job_type_name(const Job *job);

/* Wait until the job has concluded, letting GLib's main context run; then dismiss it. Returns its
 * result. Not for jobs that somebody has to finalize. */
int job_finish(Job *job, GError **error);
/* Cancel all jobs by force and wait until they are gone. */
void job_cancel_all(void);

/* --- verbs of users --- */

/* Whether the job's status allows the verb. */
bool job_allows(const Job *job, JobVerb verb, GError **error);
bool job_user_pause(Job *job, GError **error);
bool job_user_resume(Job *job, GError **error);
bool job_user_cancel(Job *job, bool force, GError **error);
bool job_user_complete(Job *job, GError **error);
bool job_user_finalize(Job *job, GError **error);
bool job_user_dismiss(Job *job, GError **error);

/* --- for whoever changes the job's surroundings --- */

/* Nests; each pause needs its resume. Does not wait until it is paused. */
void job_pause(Job *job);
void job_resume(Job *job);
/* Make it stop where it is; what becomes of it is seen later. */
void job_cancel(Job *job, bool force);
/* End its sleep, if it sleeps. */
void job_kick(Job *job);

/* --- for the job's coroutine --- */

/* Pause here if somebody wants it. */
void coroutine_fn job_pause_point(Job *job);
/* Sleep, unless and until kicked, then pause if somebody wants it. */
void coroutine_fn job_sleep_ns(Job *job, int64_t ns);
void coroutine_fn job_wait_kick(Job *job);
/* `run` goes on, but the job has reached its aim. */
void job_set_ready(Job *job);
/* Whether it must stop and fail: look after each pause point. */
bool job_is_cancelled(const Job *job);
/* The same, or it was asked politely. */
bool job_cancel_is_asked(const Job *job);

/* Any thread. */
void job_progress_set_total(Job *job, int64_t total);
void job_progress_add(Job *job, int64_t done);

/* --- transactions of jobs --- */

/* Jobs that are finalized or aborted together. The creator unrefs it once its jobs are made. */
JobTxn *job_txn_new(void);
JobTxn *job_txn_ref(JobTxn *txn);
void job_txn_unref(JobTxn *txn); /* NULL ok */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(JobTxn, job_txn_unref)

/* --- the jobs there are --- */

/* blockdev-create, in QEMU's words. */
bool job_start_blockdev_create(const char *id, const BlockdevCreateOptions *options,
                               GError **error);
/* The same for programs that wait for it, by job_finish(). Returns 0, or -errno with an error. */
int blockdev_create_wait(const BlockdevCreateOptions *options, GError **error);

#endif
