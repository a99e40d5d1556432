/* SPDX-License-Identifier: MIT */
/*
 * The job `create`: an image made by its driver's co_create. It cannot be paused or cancelled on
 * its way; a cancelled one fails when it has ended.
 */
#include "block/driver.h"
#include "block/job.h"
#include "util/error.h"

#include <errno.h>

typedef struct CreateJob {
    const BlockDriver *driver;
    BlockdevCreateOptions *options;
} CreateJob;

static int coroutine_fn create_run(Job *job, GError **error)
{
    CreateJob *create = job->state;
    int ret;

    job_progress_set_total(job, 1);
    ret = create->driver->co_create(create->options, error);
    job_progress_add(job, 1);
    return ret;
}

static void create_free(Job *job)
{
    CreateJob *create = job->state;

    blockdev_create_options_free(create->options);
}

static const JobDriver create_driver = {
    .type = JOB_TYPE_CREATE,
    .state_size = sizeof(CreateJob),
    .run = create_run,
    .free = create_free,
};

static Job *start(const char *id, const BlockdevCreateOptions *options, GError **error)
{
    const char *name = BlockdevDriver_str(options->driver);
    const BlockDriver *driver = driver_find(name);
    CreateJob *create;
    Job *job;

    if (!driver) {
        merino_error(error, "Block driver '%s' not found or not supported", name);
        return NULL;
    }
    if (!driver->co_create) {
        merino_error(error, "Driver does not support blockdev-create");
        return NULL;
    }
    job = job_create(id, &create_driver, NULL, JOB_MANUAL_DISMISS, error);
    if (!job) {
        return NULL;
    }
    create = job->state;
    create->driver = driver;
    create->options = blockdev_create_options_clone(options);
    job_start(job);
    return job;
}

bool job_start_blockdev_create(const char *id, const BlockdevCreateOptions *options, GError **error)
{
    return start(id, options, error) != NULL;
}

int blockdev_create_wait(const BlockdevCreateOptions *options, GError **error)
{
    Job *job = start(NULL, options, error);

    return job ? job_finish(job, error) : -ENOTSUP;
}
