#!/usr/bin/env bash
# Checks the messages of new commits: scripts/lint-commits.sh [BASE]
#
# New are those after BASE; without one, those after the commit at which this check began; where the history does not
# reach that far back (a shallow clone), those that are not on origin/main, and the last one in any case. Merges are left
# out. Whether a subject is in the imperative and a body says why is for the reviewer.
#
# Where CI=true it complains and passes: what CI checks out may be one commit that a merge queue made of a branch, with a
# message that no contributor wrote or can mend, and one message must not hide what the tests say.
set -euo pipefail

began=7102f49f0a1f053f655d4e9727de29ce02e9e6b9

if ! git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
    echo "lint-commits: no git history here, messages were NOT checked" >&2
    exit 0
fi
is_past() { git merge-base --is-ancestor "$1" HEAD 2>/dev/null; }
if [[ $# -gt 0 ]]; then
    new=$(git rev-list --no-merges "$1..HEAD")
elif is_past "$began"; then
    new=$(git rev-list --no-merges "$began..HEAD")
else
    new=$(git rev-list --no-merges HEAD --not --remotes=origin/main)
    [[ -n $new ]] || new=$(git rev-parse HEAD)
fi

status=0
wrong() {
    printf 'lint-commits: %s: %s\n' "$(git log -1 --format='%h (%s)' "$1")" "$2" >&2
    status=1
}

for commit in $new; do
    subject=$(git log -1 --format=%s "$commit")
    body=$(git log -1 --format=%b "$commit")
    [[ $subject =~ ^[[:alnum:]_./,*\ -]+:\ [^[:space:]] ]] || wrong "$commit" "the subject is not 'area: what it does'"
    [[ ${#subject} -le 72 ]] || wrong "$commit" "the subject has ${#subject} characters, 72 are allowed"
    [[ $subject != *. ]] || wrong "$commit" "the subject ends with a full stop"
    # trailers alone say nothing of the change
    if ! grep -qivE '^(signed-off-by|co-authored-by|reviewed-by|acked-by|change-id): |^[[:space:]]*$' <<<"$body"; then
        wrong "$commit" "there is no body that says why"
    fi
    if path=$(grep -oEm1 '(^|[^[:alnum:]_.~])/(home|Users|root|work|workspace|tmp|mnt)/[^[:space:]]*' <<<"$subject"$'\n'"$body"); then
        wrong "$commit" "a path of one machine:${path#[^/]}"
    fi
    if host=$(grep -oEim1 '\b(registry|mirror|proxy|index|artifactory|nexus)[a-z0-9-]*(\.[a-z0-9-]+)+\.[a-z]{2,}\b|[a-z0-9-]+\.(internal|corp|lan)\b' <<<"$subject"$'\n'"$body"); then
        wrong "$commit" "the host of a registry: $host"
    fi
done
[[ $status -ne 0 ]] || echo "lint-commits: $(wc -w <<<"$new") new commits"
[[ ${CI:-} != true ]] || exit 0
exit $status
