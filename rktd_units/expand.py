# SPDX-License-Identifier: Apache-2.0
"""`$(VAR)` as Kubernetes expands it in command, args and env values (k8s.io/kubernetes third_party/forked/golang/expansion)."""


def expand_references(text: str, variables: dict[str, str], used: set[str] | None = None) -> str:
    """`$(NAME)` -> its value; `$$` -> `$`; an unknown name, and a `$` before anything else, stay as they are. `used`: gets the names."""
    out: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        following = text[position + 1 : position + 2]
        if char != "$" or following == "":
            out.append(char)
            position += 1
        elif following == "$":
            out.append("$")
            position += 2
        elif following == "(" and ")" in text[position + 2 :]:
            end = text.index(")", position + 2)
            name = text[position + 2 : end]
            out.append(variables.get(name, text[position : end + 1]))
            if used is not None and name in variables:
                used.add(name)
            position = end + 1
        else:
            out.append("$" + following)
            position += 2
    return "".join(out)
