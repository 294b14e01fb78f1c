"""Classes are found by the files they stand in."""

from abc import ABC, abstractmethod
from types import ModuleType

import pytest

from retrace.core.registry import all_classes, classes_by_name, classes_of, one_class
from retrace.inversion import Method, methods


class Animal(ABC):
    name = "animal"

    @abstractmethod
    def speak(self): ...


def animal(name="dog", where="dog", base=Animal):
    return type("Found", (base,), {"name": name, "speak": print, "__module__": f"pack.animals.{where}"})


def module(stem, *classes):
    made = ModuleType(f"pack.animals.{stem}")
    vars(made).update({f"member{number}": cls for number, cls in enumerate(classes)})
    return made


def test_what_a_file_imports_is_not_what_it_defines():
    dog, puppy = animal(), animal()
    assert classes_of(module("dog", dog, Animal, animal(where="cat"), int, puppy), Animal) == [dog, puppy]
    abstract = type("Abstract", (Animal,), {"__module__": "pack.animals.dog"})
    assert one_class(module("dog", abstract, dog), Animal) is dog


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ((), "animals/dog.py must define one Animal, got 0; give each its own file."),
        ((animal(), animal()), "animals/dog.py must define one Animal, got 2; give each its own file."),
        ((animal("cat"),), "The Animal in animals/dog.py must be named 'dog', got 'cat'; rename one."),
    ],
)
def test_a_file_that_holds_not_one_of_its_name(members, sentence):
    with pytest.raises(ImportError, match=sentence):
        one_class(module("dog", *members), Animal)


def test_a_folder_is_read_in_the_order_of_its_files(root):
    by_name = classes_by_name(methods, Method)
    stems = sorted(path.stem for path in (root / "inversion" / "methods").glob("[!_]*.py"))
    assert list(by_name) == stems and list(by_name.values()) == all_classes(methods, Method)
