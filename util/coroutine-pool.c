/* SPDX-License-Identifier: MIT */
/*
 * The pool of coroutine stacks.
 *
 * Each thread keeps a few idle stacks for itself and touches nothing shared while these suffice.
 * What is too much goes to a common reserve, a batch at a time, where threads that have none left
 * find it: so stacks made by one thread and freed by another go round instead of piling up. What
 * the reserve has no room for is unmapped.
 */
#include "coroutine-int.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define BATCH       64
#define THREAD_MAX  (2 * BATCH)
#define RESERVE_MAX (16 * BATCH)

/* Address space only: memory is what a coroutine has touched. Sanitizers make frames larger. */
#if defined(CONTEXT_ASAN) || defined(CONTEXT_TSAN) || !defined(__OPTIMIZE__)
#define STACK_SIZE (1024 * 1024)
#else
#define STACK_SIZE (256 * 1024)
#endif

typedef struct StackList {
    Coroutine *first;
    unsigned n;
} StackList;

static GMutex reserve_lock;
static StackList reserve;

static void thread_pool_release(gpointer opaque);

/* Only for its destructor, which gives a finished thread's stacks to the others. */
static GPrivate thread_exit_hook = G_PRIVATE_INIT(thread_pool_release);

static __thread StackList thread_pool __attribute__((tls_model("initial-exec")));
static __thread bool thread_pool_hooked __attribute__((tls_model("initial-exec")));

static void list_push(StackList *list, Coroutine *co)
{
    co->pool_next = list->first;
    list->first = co;
    list->n++;
}

static Coroutine *list_pop(StackList *list)
{
    Coroutine *co = list->first;

    list->first = co->pool_next;
    list->n--;
    return co;
}

static size_t guard_size(void)
{
    static atomic_size_t page;

    if (atomic_load_explicit(&page, memory_order_relaxed) == 0) {
        atomic_store_explicit(&page, sysconf(_SC_PAGESIZE), memory_order_relaxed);
    }
    return atomic_load_explicit(&page, memory_order_relaxed);
}

/*
 * [guard page][stack, growing down][Coroutine][colour]
 *
 * The tops of the stacks, which every switch touches, would all fall into the same cache sets; a
 * gap that differs from stack to stack (its colour) spreads them.
 */
static Coroutine *stack_map(void)
{
    static atomic_uint colours;
    size_t guard = guard_size();
    size_t colour = atomic_fetch_add_explicit(&colours, 1, memory_order_relaxed) % 16 * 256;
    size_t usable = (STACK_SIZE - sizeof(Coroutine) - colour) & ~(size_t)63;
    char *mapping = mmap(NULL, guard + STACK_SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    Coroutine *co;

    if (mapping == MAP_FAILED || mprotect(mapping, guard, PROT_NONE) < 0) {
        g_error("cannot allocate a coroutine stack: %s", g_strerror(errno));
    }
    co = (Coroutine *)(mapping + guard + usable);
    co->mapping = mapping;
    context_init(&co->context, mapping + guard, usable, coroutine_main, co);
    return co;
}

static void stack_unmap(Coroutine *co)
{
    context_done(&co->context);
    munmap(co->mapping, guard_size() + STACK_SIZE);
}

/* Have the stacks of this thread dropped when it ends. */
static void hook_thread_exit(void)
{
    if (G_UNLIKELY(!thread_pool_hooked)) {
        thread_pool_hooked = true;
        g_private_set(&thread_exit_hook, &thread_pool);
    }
}

static void fill_from_reserve(void)
{
    hook_thread_exit();
    g_mutex_lock(&reserve_lock);
    while (reserve.n && thread_pool.n < BATCH) {
        list_push(&thread_pool, list_pop(&reserve));
    }
    g_mutex_unlock(&reserve_lock);
}

/* Let go of `n` stacks of this thread. */
static void drop_to_reserve(unsigned n)
{
    StackList excess = { NULL, 0 };

    g_mutex_lock(&reserve_lock);
    for (; n; n--) {
        list_push(reserve.n < RESERVE_MAX ? &reserve : &excess, list_pop(&thread_pool));
    }
    g_mutex_unlock(&reserve_lock);
    while (excess.n) {
        stack_unmap(list_pop(&excess));
    }
}

static void thread_pool_release(gpointer opaque)
{
    drop_to_reserve(thread_pool.n);
}

Coroutine *coroutine_pool_get(void)
{
    if (G_UNLIKELY(thread_pool.n == 0)) {
        fill_from_reserve();
        if (thread_pool.n == 0) {
            return stack_map();
        }
    }
    return list_pop(&thread_pool);
}

void coroutine_pool_put(Coroutine *co)
{
    hook_thread_exit();
    list_push(&thread_pool, co);
    if (G_UNLIKELY(thread_pool.n > THREAD_MAX)) {
        drop_to_reserve(BATCH);
    }
}
