/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: every item runs once, several at a time, and submission from many threads and
 * from workers themselves is safe.
 */
#include "util/worker-pool.h"

#include <glib.h>
#include <stdatomic.h>

#define N_ITEMS 2000

/* Waits for the test's end of what it started. */
typedef struct Tally {
    GMutex lock;
    GCond cond;
    int left;     /* guarded by lock */
    int together; /* guarded by lock: items inside their run */
    int gate;     /* guarded by lock: run until so many are together */
} Tally;

typedef struct TestItem {
    WorkItem work;
    Tally *tally;
    atomic_int runs;
    struct TestItem *then; /* to submit from within */
} TestItem;

static void tally_init(Tally *tally, int n, int gate)
{
    *tally = (Tally){ .left = n, .gate = gate };
    g_mutex_init(&tally->lock);
    g_cond_init(&tally->cond);
}

static void tally_wait(Tally *tally)
{
    g_mutex_lock(&tally->lock);
    while (tally->left) {
        g_cond_wait(&tally->cond, &tally->lock);
    }
    g_mutex_unlock(&tally->lock);
    g_cond_clear(&tally->cond);
    g_mutex_clear(&tally->lock);
}

static void run_item(WorkItem *work)
{
    TestItem *item = (TestItem *)work;
    Tally *tally = item->tally;

    atomic_fetch_add(&item->runs, 1);
    if (item->then) {
        worker_pool_submit(&item->then->work);
    }
    g_mutex_lock(&tally->lock);
    tally->left--;
    g_cond_broadcast(&tally->cond);
    g_mutex_unlock(&tally->lock);
}

static void each_item_runs_once(void)
{
    g_autofree TestItem *items = g_new0(TestItem, N_ITEMS);
    Tally tally;

    tally_init(&tally, N_ITEMS, 0);
    for (int i = 0; i < N_ITEMS; i++) {
        items[i] = (TestItem){ .work.run = run_item, .tally = &tally };
        worker_pool_submit(&items[i].work);
    }
    tally_wait(&tally);
    for (int i = 0; i < N_ITEMS; i++) {
        g_assert_cmpint(atomic_load(&items[i].runs), ==, 1);
    }
}

static void an_item_may_submit_another(void)
{
    g_autofree TestItem *items = g_new0(TestItem, N_ITEMS);
    Tally tally;

    tally_init(&tally, N_ITEMS, 0);
    for (int i = 0; i < N_ITEMS; i++) {
        items[i] = (TestItem){ .work.run = run_item, .tally = &tally };
        items[i].then = i + 1 < N_ITEMS ? &items[i + 1] : NULL;
    }
    worker_pool_submit(&items[0].work);
    tally_wait(&tally);
}

/* Blocks until the gate's number of items is inside. */
static void run_until_together(WorkItem *work)
{
    TestItem *item = (TestItem *)work;
    Tally *tally = item->tally;

    g_mutex_lock(&tally->lock);
    tally->together++;
    g_cond_broadcast(&tally->cond);
    while (tally->together < tally->gate) {
        g_cond_wait(&tally->cond, &tally->lock);
    }
    tally->left--;
    g_cond_broadcast(&tally->cond);
    g_mutex_unlock(&tally->lock);
}

static void blocking_items_run_side_by_side(void)
{
    TestItem items[WORKER_MAX];
    Tally tally;

    tally_init(&tally, WORKER_MAX, WORKER_MAX);
    for (int i = 0; i < WORKER_MAX; i++) {
        items[i] = (TestItem){ .work.run = run_until_together, .tally = &tally };
        worker_pool_submit(&items[i].work);
    }
    tally_wait(&tally);
}

static gpointer submit_all(gpointer opaque)
{
    TestItem *items = opaque;

    for (int i = 0; i < N_ITEMS; i++) {
        worker_pool_submit(&items[i].work);
    }
    return NULL;
}

static void many_threads_submit(void)
{
    TestItem *items[4];
    GThread *threads[4];
    Tally tally;

    tally_init(&tally, 4 * N_ITEMS, 0);
    for (int t = 0; t < 4; t++) {
        items[t] = g_new0(TestItem, N_ITEMS);
        for (int i = 0; i < N_ITEMS; i++) {
            items[t][i] = (TestItem){ .work.run = run_item, .tally = &tally };
        }
    }
    for (int t = 0; t < 4; t++) {
        threads[t] = g_thread_new("submitter", submit_all, items[t]);
    }
    for (int t = 0; t < 4; t++) {
        g_thread_join(threads[t]);
    }
    tally_wait(&tally);
    for (int t = 0; t < 4; t++) {
        g_free(items[t]);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/worker-pool/each-item-runs-once", each_item_runs_once);
    g_test_add_func("/worker-pool/an-item-may-submit-another", an_item_may_submit_another);
    g_test_add_func("/worker-pool/blocking-items-run-side-by-side",
                    blocking_items_run_side_by_side);
    g_test_add_func("/worker-pool/many-threads-submit", many_threads_submit);
    return g_test_run();
}
