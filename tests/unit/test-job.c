/* SPDX-License-Identifier: MIT */
/*
 * The life of jobs, told by their events: one letter a status ("C" created, "R" running, "P"
 * paused, "Y" ready, "S" standby, "W" waiting, "D" pending, "X" aborting, "E" concluded, "N"
 * null), after the job's id where there are several.
 */
#include "block/job.h"
#include "qapi/event.h"
#include "util/error.h"

#include <errno.h>
#include <jansson.h>

/* --- a job that does as it is told --- */

typedef struct Puppet {
    int steps; /* sleeps of no length */
    bool becomes_ready, complete_asked;
    bool polite; /* cancelling without force completes it */
    int ret;     /* of run */
    int prepare_ret;
    const char *words; /* of run's error */
} Puppet;

static GString *events, *calls;

static void coroutine_fn puppet_pause(Job *job)
{
    g_string_append(calls, "pause ");
}

static void coroutine_fn puppet_resume(Job *job)
{
    g_string_append(calls, "resume ");
}

static bool puppet_complete(Job *job, GError **error)
{
    Puppet *puppet = job->state;

    puppet->complete_asked = true;
    job_kick(job);
    return true;
}

static bool puppet_cancel(Job *job, bool force)
{
    Puppet *puppet = job->state;

    return force || !puppet->polite;
}

static int coroutine_fn puppet_run(Job *job, GError **error)
{
    Puppet *puppet = job->state;

    job_progress_set_total(job, puppet->steps);
    for (int i = 0; i < puppet->steps && !job_is_cancelled(job); i++) {
        job_sleep_ns(job, 0);
        job_progress_add(job, 1);
    }
    if (puppet->becomes_ready && !job_is_cancelled(job)) {
        job_set_ready(job);
        while (!puppet->complete_asked && !job_cancel_is_asked(job)) {
            job_wait_kick(job);
        }
    }
    if (puppet->words) {
        merino_error(error, "%s", puppet->words);
    }
    return puppet->ret;
}

static int puppet_prepare(Job *job, GError **error)
{
    Puppet *puppet = job->state;

    g_string_append(calls, "prepare ");
    return puppet->prepare_ret;
}

static void puppet_commit(Job *job)
{
    g_string_append(calls, "commit ");
}

static void puppet_abort(Job *job)
{
    g_string_append(calls, "abort ");
}

static void puppet_clean(Job *job)
{
    g_string_append(calls, "clean ");
}

static void puppet_announce(Job *job, JobMilestone milestone)
{
    static const char *const names[] = { "[ready]", "[pending]", "[completed]", "[cancelled]" };

    g_string_append(events, names[milestone]);
}

static void puppet_free(Job *job)
{
    g_string_append(calls, "free");
}

static const JobDriver puppet_driver = {
    .type = JOB_TYPE_CREATE,
    .state_size = sizeof(Puppet),
    .run = puppet_run,
    .pause = puppet_pause,
    .resume = puppet_resume,
    .complete = puppet_complete,
    .cancel = puppet_cancel,
    .prepare = puppet_prepare,
    .commit = puppet_commit,
    .abort = puppet_abort,
    .clean = puppet_clean,
    .announce = puppet_announce,
    .free = puppet_free,
};

static const JobDriver plain_driver = {
    .type = JOB_TYPE_CREATE,
    .state_size = sizeof(Puppet),
    .run = puppet_run,
};

static bool tell_ids;

static void on_event(const char *name, json_t *message)
{
    static const char letters[] = "UCRPYSWDXEN";
    const char *id, *status;

    g_assert_cmpstr(name, ==, "JOB_STATUS_CHANGE");
    json_unpack(message, "{s:{s:s, s:s}}", "data", "id", &id, "status", &status);
    if (tell_ids) {
        g_string_append(events, id);
    }
    g_string_append_c(events, letters[qapi_enum_parse(&qapi_type_JobStatus, status)]);
}

static Job *make(const char *id, JobTxn *txn, unsigned flags, Puppet puppet)
{
    GError *error = NULL;
    Job *job = job_create(id, &puppet_driver, txn, flags, &error);

    g_assert_no_error(error);
    *(Puppet *)job->state = puppet;
    return job;
}

static void poll_until(const Job *job, JobStatus status)
{
    while (job->status != status) {
        g_main_context_iteration(NULL, true);
    }
}

static void assert_story(const char *expected_events, const char *expected_calls)
{
    g_assert_cmpstr(events->str, ==, expected_events);
    g_assert_cmpstr(calls->str, ==, expected_calls);
    g_string_truncate(events, 0);
    g_string_truncate(calls, 0);
}

static void assert_words(GError *error, const char *words)
{
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, words);
    g_error_free(error);
}

/* --- one job --- */

static void test_success(void)
{
    Job *job = make("j", NULL, 0, (Puppet){ .steps = 3 });

    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_NULL);
    g_assert_cmpint(job->progress_current, ==, 3);
    g_assert_cmpint(job->progress_total, ==, 3);
    job_unref(job);
    assert_story("CRWD[completed]EN", "prepare commit clean free");
}

static void test_failure(void)
{
    Job *job = make("j", NULL, JOB_MANUAL_DISMISS, (Puppet){ .ret = -EIO });
    g_autoptr(JobInfoList) infos = NULL;

    job_start(job);
    poll_until(job, JOB_STATUS_CONCLUDED);
    infos = job_query();
    g_assert_cmpuint(infos->len, ==, 1);
    g_assert_cmpstr(infos->items[0]->error, ==, "Input/output error");
    g_assert_true(job_user_dismiss(job, NULL));
    assert_story("CRX[completed]EN", "abort clean free");

    job = make("j", NULL, JOB_MANUAL_DISMISS, (Puppet){ .ret = -EIO, .words = "Disk is tired" });
    job_start(job);
    poll_until(job, JOB_STATUS_CONCLUDED);
    g_assert_cmpstr(job->error->message, ==, "Disk is tired");
    g_assert_true(job_user_dismiss(job, NULL));
    assert_story("CRX[completed]EN", "abort clean free");
}

static void test_finish(void)
{
    Job *job = make(NULL, NULL, 0, (Puppet){ .steps = 2 });
    GError *error = NULL;

    job_start(job);
    g_assert_cmpint(job_finish(job, &error), ==, 0);
    g_assert_no_error(error);
    job = make(NULL, NULL, JOB_MANUAL_DISMISS, (Puppet){ .ret = -EIO });
    job_start(job);
    g_assert_cmpint(job_finish(job, &error), ==, -EIO);
    assert_words(error, "Input/output error");
    /* Jobs without an id send no events. */
    assert_story("[completed][completed]", "prepare commit clean freeabort clean free");
}

static void test_discard(void)
{
    Job *job = make("j", NULL, 0, (Puppet){ 0 });

    job_discard(job);
    job = make("j", NULL, 0, (Puppet){ 0 });
    g_assert_true(job_user_cancel(job, true, NULL));
    assert_story("CNCXEN", "freeabort clean free");
}

static void test_ids(void)
{
    GError *error = NULL;
    Job *job = make("j", NULL, 0, (Puppet){ 0 });

    g_assert_null(job_create("j", &puppet_driver, NULL, 0, &error));
    assert_words(g_steal_pointer(&error), "Job ID 'j' already in use");
    g_assert_null(job_create("1j", &puppet_driver, NULL, 0, &error));
    assert_words(g_steal_pointer(&error), "Invalid job ID '1j'");
    g_assert_null(job_lookup("k", &error));
    assert_words(g_steal_pointer(&error), "Job not found");
    g_assert_true(job_lookup("j", NULL) == job);
    job_discard(job);
    assert_story("CN", "free");
}

static void test_pause(void)
{
    Job *job = make("j", NULL, JOB_MANUAL_DISMISS, (Puppet){ .steps = 2 });
    GError *error = NULL;

    job_start(job);
    g_assert_false(job_user_resume(job, &error));
    assert_words(g_steal_pointer(&error), "Can't resume a job that was not paused");
    g_assert_true(job_user_pause(job, NULL));
    g_assert_false(job_user_pause(job, &error));
    assert_words(g_steal_pointer(&error), "Job is already paused");
    poll_until(job, JOB_STATUS_PAUSED);
    /* Two want it paused. */
    job_pause(job);
    g_assert_true(job_user_resume(job, NULL));
    while (g_main_context_iteration(NULL, false)) {
    }
    g_assert_cmpint(job->status, ==, JOB_STATUS_PAUSED);
    job_resume(job);
    poll_until(job, JOB_STATUS_CONCLUDED);
    g_assert_true(job_user_dismiss(job, NULL));
    assert_story("CRPRWD[completed]EN", "pause resume prepare commit clean free");
}

static void test_pause_before_start(void)
{
    Job *job = make("j", NULL, JOB_MANUAL_DISMISS, (Puppet){ 0 });

    job_pause(job);
    job_start(job);
    g_assert_cmpint(job->status, ==, JOB_STATUS_PAUSED);
    job_resume(job);
    poll_until(job, JOB_STATUS_CONCLUDED);
    job_cancel_all();
    assert_story("CRPRWD[completed]EN", "pause resume prepare commit clean free");
}

static void test_cancel(void)
{
    Job *job = make("j", NULL, JOB_MANUAL_DISMISS, (Puppet){ .steps = 1000000 });

    job_start(job);
    g_assert_true(job_user_cancel(job, true, NULL));
    poll_until(job, JOB_STATUS_CONCLUDED);
    g_assert_cmpstr(job->error->message, ==, "Operation canceled");
    g_assert_cmpint(job->progress_current, <, 1000000);
    g_assert_true(job_user_dismiss(job, NULL));
    assert_story("CRX[cancelled]EN", "abort clean free");
}

static void test_cancel_paused(void)
{
    Job *job = make("j", NULL, 0, (Puppet){ .steps = 1 });

    job_start(job);
    g_assert_true(job_user_pause(job, NULL));
    poll_until(job, JOB_STATUS_PAUSED);
    job_ref(job);
    g_assert_true(job_user_cancel(job, true, NULL));
    poll_until(job, JOB_STATUS_NULL);
    job_unref(job);
    assert_story("CRPRX[cancelled]EN", "pause resume abort clean free");
}

/* Between the return of `run` and the control plane's taking notice. */
static void test_cancel_at_end(void)
{
    Job *job = make("j", NULL, 0, (Puppet){ 0 });

    job_start(job_ref(job));
    g_assert_true(job->ended && job->status == JOB_STATUS_RUNNING);
    g_assert_true(job_user_cancel(job, true, NULL));
    poll_until(job, JOB_STATUS_NULL);
    job_unref(job);
    assert_story("CRX[cancelled]EN", "abort clean free");
}

static void test_pending(void)
{
    Job *job = make("j", NULL, JOB_MANUAL_FINALIZE, (Puppet){ 0 });

    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_PENDING);
    g_assert_true(job_user_finalize(job, NULL));
    g_assert_cmpint(job->status, ==, JOB_STATUS_NULL);
    job_unref(job);
    assert_story("CRWD[pending][completed]EN", "prepare commit clean free");

    job = make("j", NULL, JOB_MANUAL_FINALIZE, (Puppet){ 0 });
    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_PENDING);
    g_assert_true(job_user_cancel(job, true, NULL));
    g_assert_cmpint(job->status, ==, JOB_STATUS_NULL);
    g_assert_cmpstr(job->error->message, ==, "Operation canceled");
    job_unref(job);
    assert_story("CRWD[pending]X[cancelled]EN", "abort clean free");
}

static void test_prepare_fails(void)
{
    Job *job = make("j", NULL, 0, (Puppet){ .prepare_ret = -ENOSPC });

    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_NULL);
    g_assert_cmpstr(job->error->message, ==, "No space left on device");
    job_unref(job);
    assert_story("CRWDX[completed]EN", "prepare abort clean free");
}

static void test_ready(void)
{
    Puppet puppet = { .steps = 1, .becomes_ready = true, .polite = true };
    Job *job = make("j", NULL, 0, puppet);
    GError *error = NULL;

    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_READY);
    g_assert_true(job_user_pause(job, NULL));
    poll_until(job, JOB_STATUS_STANDBY);
    g_assert_false(job_user_complete(job, &error));
    assert_words(error, "Job 'j' in state 'standby' cannot accept command verb 'complete'");
    g_assert_true(job_user_resume(job, NULL));
    poll_until(job, JOB_STATUS_READY);
    g_assert_true(job_user_complete(job, NULL));
    poll_until(job, JOB_STATUS_NULL);
    job_unref(job);
    assert_story("CRY[ready]SYWD[completed]EN", "pause resume prepare commit clean free");

    job = make("j", NULL, 0, puppet);
    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_READY);
    g_assert_true(job_user_cancel(job, false, NULL));
    poll_until(job, JOB_STATUS_NULL);
    g_assert_cmpint(job->ret, ==, 0);
    job_unref(job);
    assert_story("CRY[ready]WD[completed]EN", "prepare commit clean free");

    job = make("j", NULL, 0, puppet);
    job_start(job_ref(job));
    poll_until(job, JOB_STATUS_READY);
    g_assert_true(job_user_cancel(job, true, NULL));
    poll_until(job, JOB_STATUS_NULL);
    g_assert_cmpint(job->ret, ==, -ECANCELED);
    job_unref(job);
    assert_story("CRY[ready]X[cancelled]EN", "abort clean free");
}

static void test_no_complete(void)
{
    GError *error = NULL;
    Job *job = job_create("j", &plain_driver, NULL, 0, NULL);

    ((Puppet *)job->state)->becomes_ready = true;
    job_start(job);
    poll_until(job, JOB_STATUS_READY);
    g_assert_false(job_user_complete(job, &error));
    assert_words(error, "The active block job 'j' cannot be completed");
    job_cancel_all();
    assert_story("CRYXEN", "");
}

/* Every verb in every status, as QEMU has it. */
static void test_verbs(void)
{
    static const char *const allowed[JOB_VERB__MAX] = {
        [JOB_VERB_CANCEL] = "CRPYSWD",  [JOB_VERB_PAUSE] = "CRPYS", [JOB_VERB_RESUME] = "CRPYS",
        [JOB_VERB_SET_SPEED] = "CRPYS", [JOB_VERB_COMPLETE] = "Y",  [JOB_VERB_FINALIZE] = "D",
        [JOB_VERB_DISMISS] = "E",
    };
    Job job = { .id = (char *)"j" };

    for (int verb = 0; verb < JOB_VERB__MAX; verb++) {
        for (int status = 0; status < JOB_STATUS__MAX; status++) {
            job.status = status;
            g_assert_cmpint(job_allows(&job, verb, NULL), ==,
                            strchr(allowed[verb], "UCRPYSWDXEN"[status]) != NULL);
        }
    }
}

/* --- transactions --- */

static void test_txn_success(void)
{
    g_autoptr(JobTxn) txn = job_txn_new();
    Job *a = make("a", txn, 0, (Puppet){ 0 });
    Job *b = make("b", txn, 0, (Puppet){ .steps = 5 });

    tell_ids = true;
    job_start(job_ref(a));
    job_start(job_ref(b));
    poll_until(b, JOB_STATUS_NULL);
    job_unref(a);
    job_unref(b);
    tell_ids = false;
    assert_story("CCaRbRaWbWaDbD[completed]aEaN[completed]bEbN",
                 "prepare prepare commit clean commit clean freefree");
}

static void test_txn_waits_for_user(void)
{
    g_autoptr(JobTxn) txn = job_txn_new();
    Job *a = make("a", txn, 0, (Puppet){ 0 });
    Job *b = make("b", txn, JOB_MANUAL_FINALIZE, (Puppet){ 0 });

    tell_ids = true;
    job_start(job_ref(a));
    job_start(job_ref(b));
    poll_until(b, JOB_STATUS_PENDING);
    g_assert_true(job_user_finalize(a, NULL));
    g_assert_cmpint(b->status, ==, JOB_STATUS_NULL);
    job_unref(a);
    job_unref(b);
    tell_ids = false;
    assert_story("CCaRbRaWbWaDbD[pending][completed]aEaN[completed]bEbN",
                 "prepare prepare commit clean commit clean freefree");
}

/* One fails: a job that waits, one at work and one that has not begun all fail with it. */
static void test_txn_failure(void)
{
    g_autoptr(JobTxn) txn = job_txn_new();
    Job *jobs[] = {
        make("a", txn, 0, (Puppet){ 0 }),
        make("b", txn, 0, (Puppet){ .steps = 1000000 }),
        make("c", txn, 0, (Puppet){ .steps = 2, .ret = -EIO }),
        make("d", txn, 0, (Puppet){ 0 }),
    };

    for (size_t i = 0; i < 4; i++) {
        job_ref(jobs[i]);
        if (i < 3) {
            job_start(jobs[i]);
        }
    }
    poll_until(jobs[1], JOB_STATUS_NULL);
    for (size_t i = 0; i < 4; i++) {
        g_assert_cmpint(jobs[i]->status, ==, JOB_STATUS_NULL);
        g_assert_cmpint(jobs[i]->ret, ==, i == 2 ? -EIO : -ECANCELED);
        job_unref(jobs[i]);
    }
    g_assert_null(strstr(calls->str, "commit"));
    g_string_truncate(events, 0);
    g_string_truncate(calls, 0);
}

static void test_txn_prepare_fails(void)
{
    g_autoptr(JobTxn) txn = job_txn_new();
    Job *a = make("a", txn, 0, (Puppet){ 0 });
    Job *b = make("b", txn, 0, (Puppet){ .prepare_ret = -EIO });

    job_start(job_ref(a));
    job_start(job_ref(b));
    poll_until(a, JOB_STATUS_NULL);
    g_assert_cmpint(a->ret, ==, -ECANCELED);
    g_assert_cmpint(b->ret, ==, -EIO);
    job_unref(a);
    job_unref(b);
    g_string_truncate(events, 0);
    assert_story("", "prepare prepare abort clean abort clean freefree");
}

static void test_cancel_all(void)
{
    g_autoptr(JobTxn) txn = job_txn_new();

    job_start(make("a", txn, JOB_MANUAL_FINALIZE, (Puppet){ 0 }));
    job_start(make("b", txn, 0, (Puppet){ .becomes_ready = true }));
    job_start(make("c", NULL, JOB_MANUAL_DISMISS, (Puppet){ .steps = 1000000 }));
    make("d", NULL, 0, (Puppet){ 0 });
    job_cancel_all();
    g_assert_null(job_next(NULL));
    g_string_truncate(events, 0);
    g_string_truncate(calls, 0);
}

/* --- work for the control plane --- */

static bool polling;

static void on_control(void *opaque)
{
    g_assert_null(coroutine_self());
    g_assert_false(polling);
    *(bool *)opaque = true;
}

static void coroutine_fn ask_control(void *opaque)
{
    co_run_control(on_control, opaque);
    g_assert_true(*(bool *)opaque);
    g_assert_nonnull(coroutine_self());
}

static void test_control(void)
{
    bool done = false;

    coroutine_start(ask_control, &done);
    polling = true;
    while (event_loop_poll(event_loop_main(), false)) {
    }
    polling = false;
    g_assert_false(done);
    while (!done) {
        g_main_context_iteration(NULL, true);
    }
    while (event_loop_poll(event_loop_main(), false)) {
    }
}

int main(int argc, char **argv)
{
    GSource *source;
    int ret;

    g_test_init(&argc, &argv, NULL);
    source = event_loop_attach(event_loop_main());
    events = g_string_new(NULL);
    calls = g_string_new(NULL);
    qapi_event_emit_fn = on_event;
    g_test_add_func("/job/success", test_success);
    g_test_add_func("/job/failure", test_failure);
    g_test_add_func("/job/finish", test_finish);
    g_test_add_func("/job/discard", test_discard);
    g_test_add_func("/job/ids", test_ids);
    g_test_add_func("/job/pause", test_pause);
    g_test_add_func("/job/pause-before-start", test_pause_before_start);
    g_test_add_func("/job/cancel", test_cancel);
    g_test_add_func("/job/cancel-paused", test_cancel_paused);
    g_test_add_func("/job/cancel-at-end", test_cancel_at_end);
    g_test_add_func("/job/pending", test_pending);
    g_test_add_func("/job/prepare-fails", test_prepare_fails);
    g_test_add_func("/job/ready", test_ready);
    g_test_add_func("/job/no-complete", test_no_complete);
    g_test_add_func("/job/verbs", test_verbs);
    g_test_add_func("/job/txn/success", test_txn_success);
    g_test_add_func("/job/txn/waits-for-user", test_txn_waits_for_user);
    g_test_add_func("/job/txn/failure", test_txn_failure);
    g_test_add_func("/job/txn/prepare-fails", test_txn_prepare_fails);
    g_test_add_func("/job/cancel-all", test_cancel_all);
    g_test_add_func("/job/control", test_control);
    ret = g_test_run();
    g_string_free(events, true);
    g_string_free(calls, true);
    g_source_destroy(source);
    g_source_unref(source);
    return ret;
}
