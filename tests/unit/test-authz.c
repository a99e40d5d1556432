/* SPDX-License-Identifier: MIT */
/*
 * Authorization objects: which rule decides, and how long they live.
 */
#include "net/authz.h"

static QAuthZListRule exact = { (char *)"CN=alice", Q_AUTH_Z_LIST_POLICY_ALLOW, false, 0 };
static QAuthZListRule not_bob = { (char *)"CN=bob?", Q_AUTH_Z_LIST_POLICY_DENY, true,
                                  Q_AUTH_Z_LIST_FORMAT_GLOB };
static QAuthZListRule any_b = { (char *)"CN=b*", Q_AUTH_Z_LIST_POLICY_ALLOW, true,
                                Q_AUTH_Z_LIST_FORMAT_GLOB };
static QAuthZListRule star = { (char *)"*", Q_AUTH_Z_LIST_POLICY_ALLOW, true,
                               Q_AUTH_Z_LIST_FORMAT_EXACT };

/* Whether the object "a" lets the identity in. */
static bool allows(const char *identity)
{
    Authz *authz = authz_acquire("a", NULL);
    bool ok;

    g_assert_nonnull(authz);
    ok = authz_allows(authz, identity);
    authz_release(authz);
    return ok;
}

static void test_simple(void)
{
    AuthZSimpleProperties properties = { (char *)"O=Merino,CN=alice" };

    authz_add_simple("a", &properties);
    g_assert_true(allows("O=Merino,CN=alice"));
    g_assert_false(allows("CN=alice,O=Merino"));
    g_assert_false(allows("O=Merino,CN=alice2"));
    g_assert_false(allows("O=merino,CN=alice"));
    g_assert_false(allows(""));
    g_assert_true(authz_delete("a", NULL));
}

/* The first rule that describes an identity decides. */
static void test_rules(void)
{
    QAuthZListRule *rules[] = { &exact, &not_bob, &any_b, &star };
    QAuthZListRuleList list = { G_N_ELEMENTS(rules), rules };
    AuthZListProperties properties = { .rules = &list };

    authz_add_list("a", &properties);
    g_assert_true(allows("CN=alice"));
    g_assert_false(allows("CN=alice,O=Merino"));
    g_assert_true(allows("CN=bob"));
    g_assert_false(allows("CN=bobo"));
    g_assert_true(allows("CN=bob,O=Merino"));
    g_assert_false(allows("CN=carol"));
    g_assert_true(allows("*"));
    g_assert_true(authz_delete("a", NULL));
}

static void test_otherwise(void)
{
    AuthZListProperties properties = { 0 };

    authz_add_list("a", &properties);
    g_assert_false(allows("CN=alice"));
    g_assert_true(authz_delete("a", NULL));
    properties.has_policy = true;
    properties.policy = Q_AUTH_Z_LIST_POLICY_ALLOW;
    authz_add_list("a", &properties);
    g_assert_true(allows("CN=alice"));
    g_assert_true(authz_delete("a", NULL));
}

static void test_users(void)
{
    AuthZSimpleProperties properties = { (char *)"alice" };
    g_autoptr(GError) none = NULL, in_use = NULL, gone = NULL;
    Authz *authz;

    g_assert_null(authz_acquire("a", &none));
    g_assert_cmpstr(none->message, ==, "No authorization object with id 'a'");
    authz_add_simple("a", &properties);
    g_assert_true(authz_exists("a"));
    authz = authz_acquire("a", NULL);
    g_assert_false(authz_delete("a", &in_use));
    g_assert_cmpstr(in_use->message, ==, "object 'a' is in use, can not be deleted");
    authz_release(authz);
    authz_release(NULL);
    g_assert_true(authz_delete("a", NULL));
    g_assert_false(authz_delete("a", &gone));
    g_assert_cmpstr(gone->message, ==, "object 'a' not found");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/authz/simple", test_simple);
    g_test_add_func("/authz/rules", test_rules);
    g_test_add_func("/authz/otherwise", test_otherwise);
    g_test_add_func("/authz/users", test_users);
    return g_test_run();
}
