/* SPDX-License-Identifier: MIT */
/*
 * References counted: pages of counters, made where there is something to count, so that a sparse
 * image of any size costs what it uses.
 */
#include "check.h"

#define PAGE_BITS 12
#define PAGE_SIZE (1 << PAGE_BITS)

struct RefCounts {
    GHashTable *pages; /* page number -> uint32_t[PAGE_SIZE] */
    GArray *order;     /* int64_t page numbers, sorted unless `unsorted` */
    bool unsorted;
    int64_t last_number; /* the page used last, which the next look mostly wants again */
    uint32_t *last;
};

RefCounts *ref_counts_new(void)
{
    RefCounts *counts = g_new0(RefCounts, 1);

    counts->pages = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, g_free);
    counts->order = g_array_new(FALSE, FALSE, sizeof(int64_t));
    return counts;
}

void ref_counts_free(RefCounts *counts)
{
    if (counts) {
        g_hash_table_destroy(counts->pages);
        g_array_free(counts->order, TRUE);
        g_free(counts);
    }
}

static uint32_t *find_page(RefCounts *counts, int64_t number)
{
    if (!counts->last || counts->last_number != number) {
        counts->last = g_hash_table_lookup(counts->pages, GSIZE_TO_POINTER((gsize)number));
        counts->last_number = number;
    }
    return counts->last;
}

static uint32_t *make_page(RefCounts *counts, int64_t number)
{
    uint32_t *page = find_page(counts, number);

    if (!page) {
        page = g_new0(uint32_t, PAGE_SIZE);
        g_hash_table_insert(counts->pages, GSIZE_TO_POINTER((gsize)number), page);
        g_array_append_val(counts->order, number);
        counts->unsorted = true;
        counts->last = page;
    }
    return page;
}

uint32_t ref_counts_get(RefCounts *counts, int64_t cluster)
{
    const uint32_t *page = find_page(counts, cluster >> PAGE_BITS);

    return page ? page[cluster & (PAGE_SIZE - 1)] : 0;
}

void ref_counts_add(RefCounts *counts, int64_t cluster, int64_t delta)
{
    uint32_t *count = &make_page(counts, cluster >> PAGE_BITS)[cluster & (PAGE_SIZE - 1)];

    *count = (uint32_t)CLAMP((int64_t)*count + delta, 0, (int64_t)UINT32_MAX);
}

static gint compare_numbers(gconstpointer a, gconstpointer b)
{
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;

    return left < right ? -1 : left > right;
}

/* The place in `order` of the first page at or after `number`. */
static guint find_place(RefCounts *counts, int64_t number)
{
    guint low = 0, high = counts->order->len;

    if (counts->unsorted) {
        g_array_sort(counts->order, compare_numbers);
        counts->unsorted = false;
    }
    while (low < high) {
        guint middle = (low + high) / 2;

        if (g_array_index(counts->order, int64_t, middle) < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int64_t ref_counts_next(RefCounts *counts, int64_t cluster)
{
    for (guint i = find_place(counts, cluster >> PAGE_BITS); i < counts->order->len; i++) {
        int64_t number = g_array_index(counts->order, int64_t, i);
        int64_t first = number << PAGE_BITS;
        const uint32_t *page = find_page(counts, number);

        for (int64_t at = MAX(cluster - first, 0); at < PAGE_SIZE; at++) {
            if (page[at]) {
                return first + at;
            }
        }
    }
    return -1;
}
