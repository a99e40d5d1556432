/* SPDX-License-Identifier: MIT */
/*
 * Coroutines that open, resize and close nodes on their way.
 */
#include "io-harness.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/size.h"

#include <errno.h>
#include <jansson.h>

typedef struct Visit {
    BlockdevRef *ref;
    int64_t size; /* to resize to */
    char *words;  /* of the error; NULL: it went well */
    int64_t seen; /* the size, as the backend tells it */
    int ret;      /* of writing the last byte */
    bool done;
} Visit;

static void coroutine_fn visit_entry(void *opaque)
{
    Visit *visit = opaque;
    GError *error = NULL;
    BlockBackend *backend = backend_co_open(visit->ref, PERM_WRITE, PERM_ALL, &error);

    if (backend && backend_co_resize(backend, visit->size, &error)) {
        IoVector vec;

        visit->seen = backend_size(backend);
        iov_init_buf(&vec, (char *)"x", 1);
        visit->ret = backend_co_pwritev(backend, visit->size - 1, 1, &vec, 0);
        iov_done(&vec);
    }
    backend_co_close(backend);
    visit->words = error ? g_strdup(error->message) : NULL;
    g_clear_error(&error);
    visit->done = true;
}

/* `text` is JSON with single quotes. */
static Visit visit(const char *text, int64_t size)
{
    GSource *source = event_loop_attach(event_loop_main());
    json_t *json = qapi_json_parse(text, strlen(text), NULL);
    Visit visit = { .size = size };

    visit.ref = qapi_decode(&qapi_type_BlockdevRef, json, QAPI_DECODE_JSON, NULL);
    json_decref(json);
    g_assert_nonnull(visit.ref);
    coroutine_start(visit_entry, &visit);
    while (!visit.done) {
        g_main_context_iteration(NULL, true);
    }
    blockdev_ref_free(visit.ref);
    g_source_destroy(source);
    g_source_unref(source);
    return visit;
}

static void test_inline(void)
{
    g_autofree char *path = temp_file("inline", 512);
    g_autofree char *text =
        g_strdup_printf("{'driver': 'file', 'filename': '%s', 'node-name': 'passing'}", path);
    Visit seen = visit(text, MiB);

    g_assert_cmpstr(seen.words, ==, NULL);
    g_assert_cmpint(seen.seen, ==, MiB);
    g_assert_cmpint(seen.ret, ==, 0);
    g_assert_null(node_find("passing"));
    run_shell("test $(stat -c %%s %s) = 1048576 && test $(tail -c 1 %s) = x", path, path);
}

static void test_reference(void)
{
    g_autofree char *path = temp_file("reference", 512);
    BlockNode *node =
        add_node("{'driver': 'file', 'filename': '%s', 'node-name': 'staying'}", path);
    Visit seen = visit("'staying'", 4096);

    g_assert_cmpstr(seen.words, ==, NULL);
    g_assert_cmpint(seen.ret, ==, 0);
    g_assert_cmpint(node_size(node), ==, 4096);
    delete_node("staying");
}

static void test_refusals(void)
{
    Visit seen = visit("'nobody'", 4096);

    g_assert_cmpstr(seen.words, ==, "Cannot find device='nobody' nor node-name='nobody'");
    g_free(seen.words);
    seen = visit("{'driver': 'null-co', 'size': 512}", 4096);
    g_assert_nonnull(seen.words);
    g_free(seen.words);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    g_test_add_func("/backend-open/inline", test_inline);
    g_test_add_func("/backend-open/reference", test_reference);
    g_test_add_func("/backend-open/refusals", test_refusals);
    return io_harness_run();
}
