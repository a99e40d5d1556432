/* SPDX-License-Identifier: MIT */
/*
 * QMP commands on jobs, and those that start them.
 */
#include "block/job.h"
#include "monitor/events.h"
#include "qapi/qapi-commands.h"

JobInfoList *qmp_query_jobs(GError **error)
{
    return job_query();
}

bool qmp_job_pause(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_pause(job, error);
}

bool qmp_job_resume(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_resume(job, error);
}

bool qmp_job_cancel(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_cancel(job, true, error);
}

bool qmp_job_complete(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_complete(job, error);
}

bool qmp_job_finalize(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_finalize(job, error);
}

bool qmp_job_dismiss(const char *id, GError **error)
{
    Job *job = job_lookup(id, error);

    return job && job_user_dismiss(job, error);
}

/* Clients of QMP know that a job is announced as created and running before this command's reply.
 */
bool qmp_blockdev_create(const char *job_id, const BlockdevCreateOptions *options, GError **error)
{
    bool ok = job_start_blockdev_create(job_id, options, error);

    qmp_events_flush();
    return ok;
}
