/* SPDX-License-Identifier: MIT */
/*
 * The main function of a fuzz target in a build without libFuzzer.
 *
 *   fuzz-WHAT [--dict FILE] [--runs N] [--seconds S] FOLDER...   seeds, beginnings, mutations; TAP
 *   fuzz-WHAT FILE...                                            each of these inputs once
 *
 * The input at work is kept in the file fuzz-WHAT.input of the working folder until the program
 * has ended well, so that an input that ends it in any way at all can be given to it again.
 */
#include "fuzz.h"
#include "mutate.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Seeds up to this length are cut at every byte, longer ones at as many places. */
#define CUTS_MAX 1024

/* One seed gets at most this part of the time that is for all of them. */
#define SLOW_SHARE 8

static char *dict_path;
static int runs = 5000;
static int seconds = 2; /* for the beginnings, and for the mutations */
static char **paths;

static const GOptionEntry option_entries[] = {
    { "dict", 0, 0, G_OPTION_ARG_FILENAME, &dict_path, "Words to mutate with", "FILE" },
    { "runs", 0, 0, G_OPTION_ARG_INT, &runs, "How many mutations", "N" },
    { "seconds", 0, 0, G_OPTION_ARG_INT, &seconds, "Go on to the next part after", "S" },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &paths, NULL, "PATH..." },
    { NULL, 0, 0, 0, NULL, NULL, NULL },
};

/* --- one input --- */

static int record_fd;
static char *record_path;

static void open_record(const char *program)
{
    g_autofree char *name = g_path_get_basename(program);

    record_path = g_strconcat(name, ".input", NULL);
    record_fd = open(record_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (record_fd < 0) {
        g_error("cannot create '%s'", record_path);
    }
}

static void close_record(void)
{
    close(record_fd);
    unlink(record_path);
    g_free(record_path);
}

/* The copy ends where the input does, so that reading beyond is seen. */
static void run(const void *data, size_t size)
{
    uint8_t *copy = malloc(size);

    if (size) {
        memcpy(copy, data, size);
    }
    if (ftruncate(record_fd, 0) < 0 || pwrite(record_fd, data, size, 0) != (ssize_t)size) {
        g_error("cannot write '%s'", record_path);
    }
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

/* --- the parts --- */

static bool time_is_up(gint64 start_us)
{
    return g_get_monotonic_time() - start_us > seconds * G_USEC_PER_SEC;
}

static void report(unsigned number, const char *what, unsigned done, gint64 start_us)
{
    printf("ok %u - %s: %u inputs%s\n", number, what, done,
           time_is_up(start_us) ? " (time was up)" : "");
    fflush(stdout);
}

static void run_seeds(GPtrArray *seeds)
{
    gint64 start_us = g_get_monotonic_time();

    for (guint i = 0; i < seeds->len; i++) {
        gsize size;
        const void *data = g_bytes_get_data(g_ptr_array_index(seeds, i), &size);

        run(data, size);
    }
    report(1, "every seed", seeds->len, start_us);
}

/* A slow seed does not use up the others' time. */
static unsigned run_beginnings_of(GBytes *seed, gint64 start_us)
{
    gint64 deadline_us = g_get_monotonic_time() + seconds * G_USEC_PER_SEC / SLOW_SHARE;
    unsigned done = 0;
    gsize size;
    const uint8_t *data = g_bytes_get_data(seed, &size);
    gsize step = MAX(size / CUTS_MAX, 1);

    for (gsize cut = 0; cut < size && !time_is_up(start_us); cut += step) {
        run(data, cut);
        done++;
        if (g_get_monotonic_time() > deadline_us) {
            break;
        }
    }
    return done;
}

static int compare_sizes(const void *a, const void *b)
{
    gsize left = g_bytes_get_size(*(GBytes *const *)a);
    gsize right = g_bytes_get_size(*(GBytes *const *)b);

    return left < right ? -1 : left > right;
}

/* Short seeds first, so that many have had their turn when the time is up. */
static void run_beginnings(GPtrArray *seeds)
{
    g_autoptr(GPtrArray) by_size = g_ptr_array_copy(seeds, NULL, NULL);
    gint64 start_us = g_get_monotonic_time();
    unsigned done = 0;

    g_ptr_array_set_free_func(by_size, NULL);
    g_ptr_array_sort(by_size, compare_sizes);
    for (guint i = 0; i < by_size->len; i++) {
        done += run_beginnings_of(g_ptr_array_index(by_size, i), start_us);
    }
    report(2, "seeds cut at every byte", done, start_us);
}

static void run_mutations(const MutationSource *source)
{
    gint64 start_us = g_get_monotonic_time();
    int done;

    for (done = 0; done < runs && !time_is_up(start_us); done++) {
        g_autoptr(GByteArray) input = mutate_next(source);

        run(input->data, input->len);
    }
    report(3, "mutations", (unsigned)done, start_us);
}

/* --- the program --- */

static GBytes *read_input(const char *path)
{
    g_autoptr(GError) error = NULL;
    char *data;
    gsize size;

    if (!g_file_get_contents(path, &data, &size, &error)) {
        g_error("%s", error->message);
    }
    return g_bytes_new_take(data, size);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Order matters to mutations; a folder has none. */
static void read_folder(const char *path, GPtrArray *seeds)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    GDir *folder = g_dir_open(path, 0, NULL);
    const char *name;

    if (!folder) {
        g_error("cannot open the folder '%s'", path);
    }
    while ((name = g_dir_read_name(folder))) {
        g_ptr_array_add(names, g_build_filename(path, name, NULL));
    }
    g_dir_close(folder);
    g_ptr_array_sort(names, compare_names);
    for (guint i = 0; i < names->len; i++) {
        g_ptr_array_add(seeds, read_input(g_ptr_array_index(names, i)));
    }
}

/* Always the same unless told otherwise: the same tree gets the same verdict, and finding new
 * inputs is what libFuzzer (`make fuzz`) is for. */
static guint32 choose_seed(void)
{
    const char *text = g_getenv("MERINO_TEST_SEED");

    return text ? (guint32)g_ascii_strtoull(text, NULL, 0) : 20261122;
}

static void run_all(GPtrArray *seeds)
{
    g_autoptr(GError) error = NULL;
    guint32 seed = choose_seed();
    MutationSource source = { .rand = g_rand_new_with_seed(seed), .seeds = seeds };

    source.words = dict_path ? mutate_read_dictionary(dict_path, &error) : g_ptr_array_new();
    if (!source.words) {
        g_error("%s", error->message);
    }
    printf("# MERINO_TEST_SEED=%u\n# the input at work is in %s\n1..3\n", seed, record_path);
    fflush(stdout);
    run_seeds(seeds);
    run_beginnings(seeds);
    run_mutations(&source);
    g_ptr_array_free(source.words, TRUE);
    g_rand_free(source.rand);
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GPtrArray) seeds = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    g_autoptr(GError) error = NULL;
    bool folders = false;

    g_option_context_add_main_entries(context, option_entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || !paths) {
        fprintf(stderr, "%s: %s\n", argv[0], error ? error->message : "which inputs?");
        return EXIT_FAILURE;
    }
    for (char **path = paths; *path; path++) {
        if (g_file_test(*path, G_FILE_TEST_IS_DIR)) {
            folders = true;
            read_folder(*path, seeds);
        } else {
            g_ptr_array_add(seeds, read_input(*path));
        }
    }
    open_record(argv[0]);
    if (folders) {
        run_all(seeds);
    } else {
        run_seeds(seeds);
    }
    close_record();
    g_strfreev(paths);
    g_free(dict_path);
    return EXIT_SUCCESS;
}
