/* SPDX-License-Identifier: MIT */
/*
 * What the files of block/jobs share among themselves.
 */
#ifndef MERINO_BLOCK_JOB_INTERNAL_H
#define MERINO_BLOCK_JOB_INTERNAL_H

#include "block/job.h"

/* --- job.c --- */

/* The one way in which a status changes. */
void job_set_status(Job *job, JobStatus status);
/* A job that has concluded, or was never started, goes. */
void job_dismiss(Job *job);

/* --- job-run.c --- */

/* Run the coroutine. */
void job_launch(Job *job);
void job_wake_sleeper(void *opaque); /* a timer's function */

/* --- job-txn.c --- */

void job_txn_add(JobTxn *txn, Job *job);
/* Also drops the job's reference to its transaction. */
void job_txn_remove(Job *job);
/* The job's `run` has returned, or never will begin: its result is in `ret`. */
void job_end(Job *job);
/* A job that has ended well is cancelled while it waits for others or for its user. */
void job_txn_cancel_ended(Job *job);
/* All that are pending. */
void job_txn_finalize(Job *job);

#endif
