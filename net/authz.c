/* SPDX-License-Identifier: MIT */
#include "net/authz.h"
#include "util/error.h"

#include <string.h>

/* An identity by itself is a list of one rule. */
struct Authz {
    char *id;
    QAuthZListRuleList *rules; /* or NULL */
    QAuthZListPolicy otherwise;
    unsigned users;
};

static GPtrArray *all; /* of Authz *, owned */

static Authz *find(const char *id)
{
    for (guint i = 0; all && i < all->len; i++) {
        Authz *authz = g_ptr_array_index(all, i);

        if (strcmp(authz->id, id) == 0) {
            return authz;
        }
    }
    return NULL;
}

bool authz_exists(const char *id)
{
    return find(id);
}

static Authz *authz_new(const char *id)
{
    Authz *authz = g_new0(Authz, 1);

    authz->id = g_strdup(id);
    authz->otherwise = Q_AUTH_Z_LIST_POLICY_DENY;
    if (!all) {
        all = g_ptr_array_new();
    }
    g_ptr_array_add(all, authz);
    return authz;
}

void authz_add_simple(const char *id, const AuthZSimpleProperties *properties)
{
    Authz *authz = authz_new(id);
    QAuthZListRule *rule = g_new0(QAuthZListRule, 1);

    rule->match = g_strdup(properties->identity);
    rule->policy = Q_AUTH_Z_LIST_POLICY_ALLOW;
    authz->rules = g_new0(QAuthZListRuleList, 1);
    q_auth_z_list_rule_list_append(authz->rules, rule);
}

void authz_add_list(const char *id, const AuthZListProperties *properties)
{
    Authz *authz = authz_new(id);

    authz->rules = properties->rules ? q_auth_z_list_rule_list_clone(properties->rules) : NULL;
    if (properties->has_policy) {
        authz->otherwise = properties->policy;
    }
}

bool authz_delete(const char *id, GError **error)
{
    Authz *authz = find(id);

    if (!authz) {
        merino_error(error, "object '%s' not found", id);
        return false;
    }
    if (authz->users) {
        merino_error(error, "object '%s' is in use, can not be deleted", id);
        return false;
    }
    g_ptr_array_remove_fast(all, authz);
    q_auth_z_list_rule_list_free(authz->rules);
    g_free(authz->id);
    g_free(authz);
    return true;
}

Authz *authz_acquire(const char *id, GError **error)
{
    Authz *authz = find(id);

    if (!authz) {
        merino_error(error, "No authorization object with id '%s'", id);
        return NULL;
    }
    authz->users++;
    return authz;
}

void authz_release(Authz *authz)
{
    if (authz) {
        authz->users--;
    }
}

static bool describes(const QAuthZListRule *rule, const char *identity)
{
    return rule->has_format && rule->format == Q_AUTH_Z_LIST_FORMAT_GLOB
               ? g_pattern_match_simple(rule->match, identity)
               : strcmp(rule->match, identity) == 0;
}

bool authz_allows(const Authz *authz, const char *identity)
{
    QAuthZListPolicy policy = authz->otherwise;

    for (size_t i = 0; authz->rules && i < authz->rules->len; i++) {
        if (describes(authz->rules->items[i], identity)) {
            policy = authz->rules->items[i]->policy;
            break;
        }
    }
    return policy == Q_AUTH_Z_LIST_POLICY_ALLOW;
}
