package mapjson
